//! `highwater user`, `role`, `key`, `policy` and `login`.

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use highwater_auth::credential::{check_password, hash_password, new_token};
use highwater_auth::policy::{BUILT_IN, ROLES};
use highwater_auth::{Command, Credentials, Policies};
use highwater_event::SystemRandomness;
use highwater_event::identity::HOME;
use highwater_sql::dialect::{Rule, Statement, parse_script};
use serde_json::{Map, Value, json};

use super::client::{Client, LISTENING, Saved, default_folder, listening, saved_token, with_scheme};
use super::config::Settings;
use super::read::{encode, objects, parse, print_json};
use super::{Failure, Output, Target, output};
use crate::http::certificate::OWN_CERTIFICATE;
use crate::node::offline;

#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Make a user. Works on a data folder that no node runs on, too.
    Create(CreateUser),
    /// All users.
    List {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// One user, with roles and permissions and who gave them.
    Show {
        /// Name.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Set another password, which signs the user out everywhere.
    Password {
        /// Name.
        name: String,
        /// File with the password; without it one is made and shown.
        #[arg(long)]
        password_file: Option<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Make a token for a service account; it is shown once.
    Token {
        /// Name.
        name: String,
        /// How long it lets the account in, days.
        #[arg(long, default_value_t = 90)]
        days: u16,
        /// End the tokens that it has.
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Let a user in no more.
    Disable {
        /// Name.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Let a user in again.
    Enable {
        /// Name.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Give a permission: view_metrics, or read@stream:orders.
    Grant {
        /// Name.
        name: String,
        /// Permission.
        permission: String,
        #[command(flatten)]
        target: Target,
    },
    /// Take a permission.
    Revoke {
        /// Name.
        name: String,
        /// Permission.
        permission: String,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Args)]
pub struct CreateUser {
    /// Name.
    name: String,
    /// The role admin.
    #[arg(long)]
    admin: bool,
    /// A role; may be given several times.
    #[arg(long)]
    role: Vec<String>,
    /// Tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// E-mail address.
    #[arg(long)]
    email: Option<String>,
    /// File with the password; without it one is made and shown.
    #[arg(long)]
    password_file: Option<PathBuf>,
    /// An account for a program: it has tokens (`highwater user token`) and no password.
    #[arg(long, conflicts_with = "password_file")]
    service: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
pub enum RoleCommand {
    /// The roles that there are.
    List,
    /// Give a role.
    Grant {
        /// Name of a user.
        name: String,
        /// Role.
        role: String,
        #[command(flatten)]
        target: Target,
    },
    /// Take a role.
    Revoke {
        /// Name of a user.
        name: String,
        /// Role.
        role: String,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make an API key; its secret is shown once.
    Create {
        /// Whose events it brings.
        #[arg(long)]
        client_id: String,
        /// What its owner calls it.
        #[arg(long)]
        name: String,
        /// Events a minute.
        #[arg(long, default_value_t = 60)]
        rate_limit: u32,
        /// What it may do: ingest and view_own when nothing is said; may be given several times.
        #[arg(long)]
        scope: Vec<String>,
        /// A source that it may name; may be given several times.
        #[arg(long)]
        source: Vec<String>,
        /// When it ends.
        #[arg(long)]
        expires_at: Option<String>,
        /// The tenant that its events are of; yours when nothing is said.
        #[arg(long)]
        tenant: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// All keys, without their secrets.
    List {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// End a key for good.
    Delete {
        /// Id.
        id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Turn a key off, or on again.
    Toggle {
        /// Id.
        id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Another secret; the old one ends now.
    Rotate {
        /// Id.
        id: String,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// The policies that every node has.
    Show,
    /// Check policies of packs: files of SQL with CREATE POLICY, Cedar files, or folders of them.
    Check {
        /// Files or folders.
        files: Vec<PathBuf>,
    },
    /// Why somebody may do something or not: "can ada read on stream:orders?"
    Explain {
        /// The question.
        question: String,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Args)]
pub struct LoginArgs {
    /// Address of the node; by default the one that runs here.
    #[arg(long, env = "HIGHWATER_URL")]
    url: Option<String>,
    /// Name.
    #[arg(long)]
    user: String,
    /// File with the password; without it it is read from standard input.
    #[arg(long)]
    password_file: Option<PathBuf>,
    /// PEM file with the certificate of a node that has made its own.
    #[arg(long, env = "HIGHWATER_CERTIFICATE")]
    certificate: Option<PathBuf>,
}

const JSON: &str = "application/json";

fn say(answer: &str) -> Result<ExitCode, Failure> {
    if !answer.trim().is_empty() {
        print_json(&parse(answer)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read_password(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::new("no_password", format!("the password in {} can't be read: {error}", file.display()))
            .exit(2)
    })?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// The password of a file, or one that is made here: then it is shown, once.
fn password(file: Option<&Path>) -> Result<(String, bool), Failure> {
    match file {
        Some(file) => Ok((read_password(file)?, false)),
        None => {
            let token =
                new_token(&SystemRandomness).map_err(|error| Failure::new("failed", error.to_string()))?;
            Ok((token[..24].to_owned(), true))
        }
    }
}

fn show_password(made: bool, password: &str) {
    if made {
        eprintln!("password (shown once): {password}");
    }
}

/// `highwater user`.
pub fn user(command: UserCommand) -> Result<ExitCode, Failure> {
    let change = |name: &str, target: &Target, change: Value| {
        say(&Client::new(target)?.call("PATCH", &format!("/api/v1/users/{}", encode(name)), Some(&change))?)
    };
    let permission = |method: &str, name: String, permission: String, target: &Target| {
        let body = json!({"username": name, "permission": permission});
        say(&Client::new(target)?.call(method, "/api/admin/permissions", Some(&body))?)
    };
    match command {
        UserCommand::Create(arguments) => create_user(arguments),
        UserCommand::List { target, output } => {
            let answer = parse(&Client::new(&target)?.get("/api/v1/users")?)?;
            let names = |value: &Value| -> String {
                let names: Vec<&str> =
                    value.as_array().into_iter().flatten().filter_map(|held| held["name"].as_str()).collect();
                names.join(", ")
            };
            let rows: Vec<Map<String, Value>> = objects(&answer["users"])
                .into_iter()
                .map(|mut user| {
                    for held in ["roles", "permissions"] {
                        user.insert(held.to_owned(), names(&user[held]).into());
                    }
                    user
                })
                .collect();
            let columns =
                ["username", "tenant", "active", "roles", "permissions", "created_at"].map(str::to_owned);
            output::print(output.output, &columns, &rows)?;
            Ok(ExitCode::SUCCESS)
        }
        UserCommand::Show { name, target } => {
            say(&Client::new(&target)?.get(&format!("/api/v1/users/{}", encode(&name)))?)
        }
        UserCommand::Password { name, password_file, target } => {
            let (password, made) = password(password_file.as_deref())?;
            let code = change(&name, &target, json!({"password": password}))?;
            show_password(made, &password);
            Ok(code)
        }
        UserCommand::Token { name, days, replace, target } => {
            let path = format!("/api/v1/users/{}/tokens", encode(&name));
            let body = json!({"days": days, "replace": replace});
            say(&Client::new(&target)?.call("POST", &path, Some(&body))?)
        }
        UserCommand::Disable { name, target } => change(&name, &target, json!({"active": false})),
        UserCommand::Enable { name, target } => change(&name, &target, json!({"active": true})),
        UserCommand::Grant { name, permission: what, target } => permission("POST", name, what, &target),
        UserCommand::Revoke { name, permission: what, target } => permission("DELETE", name, what, &target),
    }
}

fn create_user(arguments: CreateUser) -> Result<ExitCode, Failure> {
    let CreateUser { name, admin, mut role, tenant, email, password_file, service, target } = arguments;
    if admin {
        role.push("admin".into());
    }
    let (password, made) = if service {
        (None, false)
    } else {
        let (password, made) = password(password_file.as_deref())?;
        (Some(password), made)
    };
    let show = || password.iter().for_each(|password| show_password(made, password));
    let folder = target.data.clone().or_else(default_folder);
    let offline = folder.filter(|folder| target.url.is_none() && !folder.join(LISTENING).exists());
    let Some(folder) = offline else {
        let body = json!({"username": name, "password": password, "service": service, "roles": role, "tenant": tenant, "email": email});
        let code = say(&Client::new(&target)?.call("POST", "/api/v1/users", Some(&body))?)?;
        show();
        return Ok(code);
    };
    let hash = |password: &String| {
        check_password(password, &[&name]).map_err(|weak| Failure::new("weak_password", weak.to_string()))?;
        hash_password(password, &SystemRandomness).map_err(|error| Failure::new("failed", error))
    };
    let secret = password.as_ref().map(hash).transpose()?;
    let command = Command::CreateUser {
        user: name.clone(),
        email,
        tenant: tenant.unwrap_or_else(|| HOME.into()),
        roles: role,
        sources: Vec::new(),
        unchecked: false,
        service,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let master_key = Settings::find(&[])?.master_key();
    let change = offline::change(
        &folder,
        master_key.as_deref(),
        Credentials { command, secret },
        "manage_users",
        format!("user:{name}"),
    );
    runtime.block_on(change)?;
    eprintln!("{name} is a user of {}", folder.display());
    show();
    Ok(ExitCode::SUCCESS)
}

/// `highwater role`.
pub fn role(command: RoleCommand) -> Result<ExitCode, Failure> {
    let (name, change, target) = match command {
        RoleCommand::List => {
            let mut out = std::io::stdout().lock();
            for role in ROLES {
                writeln!(out, "{role}")?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        RoleCommand::Grant { name, role, target } => (name, json!({"grant_role": role}), target),
        RoleCommand::Revoke { name, role, target } => (name, json!({"revoke_role": role}), target),
    };
    say(&Client::new(&target)?.call("PATCH", &format!("/api/v1/users/{}", encode(&name)), Some(&change))?)
}

/// `highwater key`.
pub fn key(command: KeyCommand) -> Result<ExitCode, Failure> {
    match command {
        KeyCommand::Create { client_id, name, rate_limit, scope, source, expires_at, tenant, target } => {
            let mut body = json!({"client_id": client_id, "name": name, "rate_limit": rate_limit, "sources": source, "tenant": tenant});
            if !scope.is_empty() {
                body["scopes"] = scope.into();
            }
            if let Some(end) = expires_at {
                body["expires_at"] = end.into();
            }
            say(&Client::new(&target)?.post("/api/v1/keys", JSON, JSON, body.to_string().as_bytes())?)
        }
        KeyCommand::List { target, output } => {
            let answer = parse(&Client::new(&target)?.get("/api/v1/keys")?)?;
            let columns =
                ["id", "client_id", "name", "prefix", "rate_limit", "active", "created_at", "last_used_at"];
            output::print(output.output, &columns.map(str::to_owned), &objects(&answer["keys"]))?;
            Ok(ExitCode::SUCCESS)
        }
        KeyCommand::Delete { id, target } => {
            say(&Client::new(&target)?.call("DELETE", &format!("/api/v1/keys/{}", encode(&id)), None)?)
        }
        KeyCommand::Toggle { id, target } => say(&Client::new(&target)?.post(
            &format!("/api/v1/keys/{}/toggle", encode(&id)),
            JSON,
            JSON,
            b"",
        )?),
        KeyCommand::Rotate { id, target } => say(&Client::new(&target)?.post(
            &format!("/api/v1/keys/{}/rotate", encode(&id)),
            JSON,
            JSON,
            b"",
        )?),
    }
}

/// Policies by their names: Cedar files, and what files of SQL declare.
fn policies_in(paths: &[PathBuf]) -> Result<Vec<(String, String)>, Failure> {
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            let mut inside = std::fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
            inside.sort_by_key(std::fs::DirEntry::path);
            let files = inside.iter().map(std::fs::DirEntry::path);
            let files: Vec<PathBuf> = files
                .filter(|file| file.extension().is_some_and(|end| end == "cedar" || end == "sql"))
                .collect();
            found.extend(policies_in(&files)?);
        } else {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Failure::new("no_policy", format!("{} can't be read: {error}", path.display())).exit(2)
            })?;
            if path.extension().is_none_or(|end| end != "sql") {
                found.push((path.display().to_string(), text));
                continue;
            }
            let declared = parse_script(&text).map_err(|error| {
                Failure::new(error.code, format!("{}: {}", path.display(), error.render(&text))).exit(2)
            })?;
            found.extend(declared.into_iter().filter_map(|declared| match declared.statement {
                Statement::CreateRule { name, rule: Rule::Policy { text }, .. } => {
                    Some((name.to_string(), text))
                }
                _ => None,
            }));
        }
    }
    Ok(found)
}

/// `highwater policy`.
pub fn policy(command: PolicyCommand) -> Result<ExitCode, Failure> {
    match command {
        PolicyCommand::Show => {
            write!(std::io::stdout().lock(), "{BUILT_IN}")?;
            Ok(ExitCode::SUCCESS)
        }
        PolicyCommand::Check { files } => {
            let packs = policies_in(&files)?;
            Policies::new(&packs).map_err(|error| Failure::new("invalid_policy", error.to_string()))?;
            eprintln!("the policies are fine: those of every node, and {} of packs", packs.len());
            Ok(ExitCode::SUCCESS)
        }
        PolicyCommand::Explain { question, target } => {
            let words: Vec<&str> = question.trim().trim_end_matches('?').split_whitespace().collect();
            let (user, permission, on) = match words.as_slice() {
                ["can", user, "do", permission] | ["can", user, permission] => (user, permission, None),
                ["can", user, "do", permission, "on", on] | ["can", user, permission, "on", on] => {
                    (user, permission, Some(on))
                }
                _ => {
                    return Err(Failure::new("usage", "ask like: can ada read on stream:orders?").exit(2));
                }
            };
            let mut body = json!({"username": user, "permission": permission});
            if let Some(on) = on {
                body["on"] = Value::from(*on);
            }
            let answer = Client::new(&target)?.post(
                "/api/v1/policy/explain",
                JSON,
                JSON,
                body.to_string().as_bytes(),
            )?;
            let answer = parse(&answer)?;
            print_json(&answer)?;
            Ok(if answer["allowed"] == true { ExitCode::SUCCESS } else { ExitCode::from(5) })
        }
    }
}

/// `highwater login`: keeps a token for the commands that follow.
pub fn login(arguments: LoginArgs) -> Result<ExitCode, Failure> {
    let password = match &arguments.password_file {
        Some(file) => read_password(file)?,
        None => {
            if std::io::stdin().is_terminal() {
                eprint!("password: ");
                std::io::stderr().flush()?;
            }
            let mut line = String::new();
            std::io::stdin().lock().read_line(&mut line)?;
            line.trim_end_matches(['\n', '\r']).to_owned()
        }
    };
    let folder = default_folder();
    let here = || folder.as_ref().and_then(|folder| listening(folder).ok());
    let url = arguments.url.clone().or_else(here).unwrap_or_else(|| "http://127.0.0.1:7700".into());
    let url = with_scheme(&url);
    let own = folder.as_ref().map(|folder| folder.join(OWN_CERTIFICATE)).filter(|file| file.exists());
    let certificate = arguments.certificate.clone().or(own).map(std::path::absolute).transpose()?;
    let client = Client::anonymous(&url, certificate.iter().cloned().collect())?;
    let body = json!({"username": arguments.user, "password": password});
    let answer = client.call("POST", "/api-token-auth/", Some(&body)).map_err(|failure| failure.exit(4))?;
    let answer = parse(&answer)?;
    let token =
        answer["token"].as_str().ok_or_else(|| Failure::new("bad_answer", "the node sent no token"))?;
    let file = saved_token()
        .ok_or_else(|| Failure::new("no_home", "there is no home folder to keep the token in").exit(2))?;
    let saved = Saved { url: url.clone(), token: token.to_owned(), certificate };
    crate::node::replace_secret(&file, &saved.text())?;
    eprintln!("signed in as {} at {url}; the token is in {}", arguments.user, file.display());
    Ok(ExitCode::SUCCESS)
}
