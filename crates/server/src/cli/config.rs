//! Settings of a node and where each came from: flag, environment, `./highwater.toml`, the user's own
//! `highwater/config.toml`, default — the first that says something holds.
//!
//! A setting `log.retention` is `HIGHWATER__LOG__RETENTION` in the environment, or in a file that
//! `HIGHWATER__LOG__RETENTION_FILE` names.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use axum::http::{HeaderValue, Uri};
use clap::ValueEnum;
use highwater_audit::Witness;
use highwater_auth::oidc::{self, GOOGLE, Provider};
use highwater_auth::policy::ROLES;
use highwater_sql::dialect::parse_duration;
use serde_json::{Map, Value};

use super::{ConfigCommand, Failure, ServeArgs, output};
use crate::http::certificate::{Mode, Tls};
use crate::http::{AccessLog, CallOptions};
use crate::node::{Destination, NodeOptions, ProviderOptions, PublishOptions};

/// A setting: its key, its default, and what it is.
struct Known {
    key: &'static str,
    default: &'static str,
    about: &'static str,
}

/// The one setting that is shown to nobody.
const SECRET: &str = "oidc.client_secret";

const KNOWN: [Known; 34] = [
    Known { key: "data", default: "./highwater-data", about: "data folder" },
    Known { key: "listen", default: "127.0.0.1:7700", about: "address and port to listen on" },
    Known {
        key: "packs",
        default: "",
        about: "folders of SQL files to declare at the start, with commas between them",
    },
    Known {
        key: "lake.wait",
        default: "5 seconds",
        about: "how long rows may wait before they are written to the lake",
    },
    Known {
        key: "lake.snapshots",
        default: "60 seconds",
        about: "time between two snapshots of changed tables in the lake",
    },
    Known {
        key: "lake.keep",
        default: "60 seconds",
        about: "time between two rounds of compaction and retention",
    },
    Known { key: "log.retention", default: "7 days", about: "how long the log keeps what the lake has too" },
    Known { key: "tables.write_back", default: "1 second", about: "time between two write-backs of tables" },
    Known { key: "tables.memory", default: "64 MiB", about: "clean states that one table keeps in memory" },
    Known { key: "query.memory", default: "1024 MiB", about: "what all queries together may hold" },
    Known {
        key: "encryption.master_key",
        default: "",
        about: "file with the key that wraps the keys of SENSITIVE columns; in the data folder when empty",
    },
    Known {
        key: "audit.required",
        default: "true",
        about: "whether an answer is kept back when its entry of the audit trail can't be written",
    },
    Known {
        key: "audit.retention",
        default: "",
        about: "how long entries of the audit trail are kept, whose hashes stay; for ever when empty",
    },
    Known {
        key: "audit.witnesses",
        default: "",
        about: "witnesses that sign checkpoints, each its address and its key (https://witness.example NAME+ID+KEY), with commas between them",
    },
    Known {
        key: "audit.publish",
        default: "",
        about: "folders and addresses that checkpoints are sent to, with commas between them",
    },
    Known {
        key: "audit.publish_every",
        default: "60 seconds",
        about: "time between two checkpoints that witnesses and others are told of",
    },
    Known {
        key: "audit.certificate",
        default: "",
        about: "PEM file with a certificate that these may have beside those that this machine believes",
    },
    Known {
        key: "auth.sign_up",
        default: "true",
        about: "whether whoever finds the page may make an account of their own",
    },
    Known { key: "auth.session", default: "60 minutes", about: "how long an access token lets its owner in" },
    Known {
        key: "http.url",
        default: "",
        about: "address under which browsers find the node, such as https://highwater.example",
    },
    Known {
        key: "oidc.issuer",
        default: "",
        about: "OpenID Connect provider to sign in at: its URL, or google",
    },
    Known { key: "oidc.client_id", default: "", about: "what the provider calls this node" },
    Known { key: SECRET, default: "", about: "what the provider knows this node by" },
    Known {
        key: "oidc.role",
        default: "",
        about: "role of those who sign in there and have no account yet; without one they get none",
    },
    Known {
        key: "oidc.domains",
        default: "",
        about: "domains of e-mail addresses that may get one, with commas between them; all when empty",
    },
    Known {
        key: "oidc.certificate",
        default: "",
        about: "PEM file with a certificate that the provider may have beside those that this machine believes",
    },
    Known {
        key: "tls.mode",
        default: "auto",
        about: "when calls are encrypted: on, off, or auto: unless only this machine can call",
    },
    Known {
        key: "tls.certificate",
        default: "",
        about: "PEM file with the certificate chain; without it the node makes a certificate of its own",
    },
    Known { key: "tls.key", default: "", about: "PEM file with the key of the certificate" },
    Known {
        key: "tls.names",
        default: "",
        about: "names that a certificate of the node's own has beside those of this machine, with commas between them",
    },
    Known {
        key: "http.cors",
        default: "",
        about: "other sites whose pages may call with a token, such as https://app.example, with commas between them",
    },
    Known {
        key: "http.access_log",
        default: "",
        about: "file that gets a line of JSON for each call, or - for standard error",
    },
    Known {
        key: "http.address_limit",
        default: "",
        about: "calls that one address may make in a minute; any number when empty",
    },
    Known {
        key: "http.trusted_proxies",
        default: "",
        about: "addresses of proxies whose word about a caller's address is believed, with commas between them",
    },
];

/// A setting with its value and source.
#[derive(Debug, Clone)]
pub struct Setting {
    pub key: &'static str,
    pub value: String,
    pub source: String,
    pub about: &'static str,
}

/// All settings.
pub struct Settings(Vec<Setting>);

/// Files in which settings are looked for, the nearest first.
fn files() -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("highwater.toml")];
    let home = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")));
    files.extend(home.map(|home| home.join("highwater/config.toml")));
    files
}

fn read(file: &Path) -> Result<Option<toml::Table>, Failure> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Failure::new("config", format!("{} can't be read: {error}", file.display())).exit(2));
        }
    };
    let table: toml::Table = text
        .parse()
        .map_err(|error| Failure::new("config", format!("{}: {error}", file.display())).exit(2))?;
    for (name, value) in &table {
        let keys: Vec<String> = match value {
            toml::Value::Table(inner) => inner.keys().map(|inner| format!("{name}.{inner}")).collect(),
            _ => vec![name.clone()],
        };
        for key in keys {
            if !KNOWN.iter().any(|known| known.key == key) {
                let near = highwater_event::name::nearest(&key, KNOWN.iter().map(|known| known.key));
                let failure =
                    Failure::new("config", format!("{}: there is no setting \"{key}\"", file.display()))
                        .exit(2);
                return Err(match near {
                    Some(near) => failure.hint(format!("did you mean {near}?")),
                    None => failure,
                });
            }
        }
    }
    Ok(Some(table))
}

fn lookup(table: &toml::Table, key: &str) -> Option<String> {
    let mut value: &toml::Value = table.get(key.split('.').next()?)?;
    for part in key.split('.').skip(1) {
        value = value.get(part)?;
    }
    Some(match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(parts) => parts
            .iter()
            .map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned))
            .collect::<Vec<_>>()
            .join(","),
        other => other.to_string(),
    })
}

fn environment(key: &str) -> Result<Option<(String, String)>, Failure> {
    let long = format!("HIGHWATER__{}", key.to_ascii_uppercase().replace('.', "__"));
    let short = format!("HIGHWATER_{}", key.to_ascii_uppercase());
    for name in [long.as_str(), short.as_str()] {
        if let Ok(value) = std::env::var(name) {
            return Ok(Some((value, format!("environment {name}"))));
        }
    }
    let by_file = format!("{long}_FILE");
    match std::env::var(&by_file) {
        Ok(file) => {
            let text = std::fs::read_to_string(&file).map_err(|error| {
                Failure::new("config", format!("{by_file}: {file} can't be read: {error}")).exit(2)
            })?;
            Ok(Some((text.trim().to_owned(), format!("file {file}"))))
        }
        Err(_) => Ok(None),
    }
}

impl Settings {
    /// Finds every setting. `flags` are those that were given on the command line.
    pub fn find(flags: &[(&'static str, Option<String>)]) -> Result<Self, Failure> {
        for (name, _) in std::env::vars() {
            let Some(rest) = name.strip_prefix("HIGHWATER__") else { continue };
            let key = rest.trim_end_matches("_FILE").to_ascii_lowercase().replace("__", ".");
            if !KNOWN.iter().any(|known| known.key == key) {
                let failure =
                    Failure::new("config", format!("environment {name}: there is no setting \"{key}\""))
                        .exit(2);
                let near = highwater_event::name::nearest(&key, KNOWN.iter().map(|known| known.key));
                return Err(match near {
                    Some(near) => failure.hint(format!("did you mean {near}?")),
                    None => failure,
                });
            }
        }
        let mut tables = Vec::new();
        for file in files() {
            if let Some(table) = read(&file)? {
                tables.push((file, table));
            }
        }
        let mut settings = Vec::new();
        for Known { key, default, about } in KNOWN {
            let flag = flags.iter().find(|(name, _)| *name == key).and_then(|(_, value)| value.clone());
            let (value, source) = match (flag, environment(key)?) {
                (Some(value), _) => (value, "flag".to_owned()),
                (None, Some(found)) => found,
                (None, None) => tables
                    .iter()
                    .find_map(|(file, table)| Some((lookup(table, key)?, file.display().to_string())))
                    .unwrap_or_else(|| (default.to_owned(), "default".to_owned())),
            };
            settings.push(Setting { key, value, source, about });
        }
        Ok(Self(settings))
    }

    /// Those of `highwater serve`.
    pub fn of_serve(arguments: &ServeArgs) -> Result<Self, Failure> {
        let seconds = |value: Option<f64>| value.map(|value| format!("{value} seconds"));
        let packs: Vec<String> = arguments.pack.iter().map(|pack| pack.display().to_string()).collect();
        Self::find(&[
            ("data", arguments.data.as_ref().map(|data| data.display().to_string())),
            ("listen", arguments.listen.map(|listen| listen.to_string())),
            (
                "tls.mode",
                arguments.tls.and_then(|mode| Some(mode.to_possible_value()?.get_name().to_owned())),
            ),
            ("tls.certificate", arguments.tls_certificate.as_ref().map(|file| file.display().to_string())),
            ("tls.key", arguments.tls_key.as_ref().map(|file| file.display().to_string())),
            ("packs", (!packs.is_empty()).then(|| packs.join(","))),
            ("lake.wait", seconds(arguments.lake_wait)),
            ("lake.snapshots", seconds(arguments.snapshot_every)),
        ])
    }

    fn get(&self, key: &str) -> &Setting {
        // Every key that is asked for is in KNOWN.
        self.0.iter().find(|setting| setting.key == key).unwrap_or(&self.0[0])
    }

    fn wrong(setting: &Setting, wanted: &str) -> Failure {
        Failure::new(
            "config",
            format!("{} is \"{}\" ({}), which is not {wanted}", setting.key, setting.value, setting.source),
        )
        .exit(2)
    }

    fn duration(&self, key: &str) -> Result<Duration, Failure> {
        let setting = self.get(key);
        let (number, unit) =
            setting.value.trim().split_once(' ').unwrap_or((setting.value.trim(), "seconds"));
        let fraction = number.parse::<f64>().ok().filter(|_| unit.trim_end_matches('s') == "second");
        let duration = match fraction {
            Some(seconds) => Duration::try_from_secs_f64(seconds).ok(),
            None => parse_duration(&setting.value).map(|micros| Duration::from_micros(micros as u64)),
        };
        duration
            .filter(|duration| !duration.is_zero())
            .ok_or_else(|| Self::wrong(setting, "a duration like \"5 seconds\""))
    }

    fn bytes(&self, key: &str) -> Result<usize, Failure> {
        let setting = self.get(key);
        let text = setting.value.trim();
        let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let scale = match text[at..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => Some(1),
            "kib" | "kb" => Some(1 << 10),
            "mib" | "mb" => Some(1 << 20),
            "gib" | "gb" => Some(1usize << 30),
            _ => None,
        };
        let number = text[..at].parse::<usize>().ok();
        number
            .zip(scale)
            .and_then(|(number, scale)| number.checked_mul(scale))
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| Self::wrong(setting, "a size like \"64 MiB\""))
    }

    /// What a setting says, when it says anything.
    fn get_some<T>(
        &self,
        key: &str,
        read: impl FnOnce(&Self, &str) -> Result<T, Failure>,
    ) -> Result<Option<T>, Failure> {
        if self.get(key).value.trim().is_empty() { Ok(None) } else { read(self, key).map(Some) }
    }

    fn count(&self, key: &str) -> Result<u32, Failure> {
        let setting = self.get(key);
        let number = setting.value.trim().parse().ok().filter(|number| *number > 0);
        number.ok_or_else(|| Self::wrong(setting, "a number from 1 on"))
    }

    fn flag(&self, key: &str) -> Result<bool, Failure> {
        let setting = self.get(key);
        setting.value.trim().parse().map_err(|_| Self::wrong(setting, "true or false"))
    }

    fn addresses(&self, key: &str) -> Result<Vec<std::net::IpAddr>, Failure> {
        let parts = self.list(key).into_iter();
        parts
            .map(|part| part.parse().map_err(|_| Self::wrong(self.get(key), "a list of addresses")))
            .collect()
    }

    /// Sites as browsers name them: scheme, host, perhaps a port, and nothing behind it.
    fn origins(&self, key: &str) -> Result<Vec<HeaderValue>, Failure> {
        let wrong = || Self::wrong(self.get(key), "a list of sites like https://app.example");
        let read = |text: &String| {
            let uri: Uri = text.parse().map_err(|_| wrong())?;
            let plain = uri.scheme().is_some() && uri.path() == "/" && !text.ends_with('/');
            if !plain || uri.query().is_some() {
                return Err(wrong());
            }
            HeaderValue::from_str(&text.to_ascii_lowercase()).map_err(|_| wrong())
        };
        self.list(key).iter().map(read).collect()
    }

    /// What is done around calls.
    pub fn calls(&self) -> Result<CallOptions, Failure> {
        let setting = self.get("http.access_log");
        let file = Some(setting.value.trim()).filter(|file| !file.is_empty());
        let access_log = file.map(|file| {
            AccessLog::open(Path::new(file)).map_err(|error| {
                Failure::new("access_log", format!("{file} ({}) can't be written: {error}", setting.source))
                    .exit(2)
                    .hint("http.access_log names a file, or - for standard error")
            })
        });
        Ok(CallOptions { access_log: access_log.transpose()?, cors: self.origins("http.cors")? })
    }

    fn list(&self, key: &str) -> Vec<String> {
        let parts = self.get(key).value.split(',').map(str::trim);
        parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        PathBuf::from(&self.get("data").value)
    }

    /// Where to listen.
    pub fn listen(&self) -> Result<SocketAddr, Failure> {
        let setting = self.get("listen");
        setting.value.parse().map_err(|_| Self::wrong(setting, "an address like 127.0.0.1:7700"))
    }

    /// Packs to declare.
    pub fn packs(&self) -> Vec<PathBuf> {
        self.list("packs").into_iter().map(PathBuf::from).collect()
    }

    /// Who is told of checkpoints of the audit trail.
    fn publish(&self) -> Result<PublishOptions, Failure> {
        let setting = self.get("audit.witnesses");
        let read = self.list("audit.witnesses").into_iter().map(|text| Witness::parse(&text));
        let witnesses = read.collect::<Result<_, _>>().map_err(|error| {
            let place = format!("audit.witnesses ({})", setting.source);
            Failure::new("config", format!("{place}: {error}")).exit(2)
        })?;
        let destinations = self.list("audit.publish").iter().map(|text| Destination::parse(text)).collect();
        let trusted = self.list("audit.certificate").into_iter().map(PathBuf::from).collect();
        Ok(PublishOptions { witnesses, destinations, trusted })
    }

    /// Where people sign in beside here.
    fn provider(&self) -> Result<Option<ProviderOptions>, Failure> {
        let text = |key: &str| Some(self.get(key).value.trim().to_owned()).filter(|text| !text.is_empty());
        let Some(issuer) = text("oidc.issuer") else { return Ok(None) };
        let issuer = if issuer == "google" { GOOGLE.to_owned() } else { issuer };
        let needed = |key: &str, wanted: &str| text(key).ok_or_else(|| Self::wrong(self.get(key), wanted));
        let url = needed("http.url", "an address, which a provider needs to send people back to")?;
        let role = text("oidc.role");
        if role.as_ref().is_some_and(|role| !ROLES.contains(&role.as_str())) {
            return Err(Self::wrong(self.get("oidc.role"), &format!("one of {}", ROLES.join(", "))));
        }
        let settings = oidc::Settings {
            issuer,
            client_id: needed("oidc.client_id", "a name that the provider knows")?,
            client_secret: text(SECRET),
            callback: format!("{}/auth/callback", url.trim_end_matches('/')),
        };
        let trusted = text("oidc.certificate").map(PathBuf::from).into_iter().collect();
        let options = ProviderOptions { settings, role, domains: self.list("oidc.domains"), trusted };
        Provider::new(options.settings.clone())
            .map_err(|error| Failure::new("config", error.to_string()).exit(2))?;
        Ok(Some(options))
    }

    /// How calls are encrypted.
    pub fn tls(&self) -> Result<Tls, Failure> {
        let mode = self.get("tls.mode");
        let known =
            Mode::from_str(mode.value.trim(), true).map_err(|_| Self::wrong(mode, "auto, on or off"))?;
        let (chain, key) = (self.get("tls.certificate"), self.get("tls.key"));
        let files = match (chain.value.trim(), key.value.trim()) {
            ("", "") => None,
            (_, "") => return Err(Self::wrong(key, "a file, though tls.certificate is one")),
            ("", _) => return Err(Self::wrong(chain, "a file, though tls.key is one")),
            (chain, key) => Some((PathBuf::from(chain), PathBuf::from(key))),
        };
        Ok(Tls { mode: known, files, names: self.list("tls.names") })
    }

    /// The file of the master key, when it does not lie in the data folder.
    pub fn master_key(&self) -> Option<PathBuf> {
        Some(self.get("encryption.master_key").value.trim())
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    }

    /// How the node is run.
    pub fn node(&self) -> Result<NodeOptions, Failure> {
        Ok(NodeOptions {
            lake_wait: self.duration("lake.wait")?,
            snapshot_every: self.duration("lake.snapshots")?,
            keep_every: self.duration("lake.keep")?,
            log_retention: self.duration("log.retention")?,
            write_back_every: self.duration("tables.write_back")?,
            table_memory: self.bytes("tables.memory")?,
            query_memory: self.bytes("query.memory")?,
            audit_required: self.flag("audit.required")?,
            audit_retention: self.get_some("audit.retention", Self::duration)?,
            publish: self.publish()?,
            publish_every: self.duration("audit.publish_every")?,
            sign_up: self.flag("auth.sign_up")?,
            session: self.duration("auth.session")?,
            provider: self.provider()?,
            address_limit: self.get_some("http.address_limit", Self::count)?,
            trusted_proxies: self.addresses("http.trusted_proxies")?,
            master_key: self.master_key(),
            ..NodeOptions::at(self.data())
        })
    }

    /// The settings as rows.
    pub fn rows(&self) -> Vec<Map<String, Value>> {
        let row = |setting: &Setting| {
            let hidden = setting.key == SECRET && !setting.value.is_empty();
            [
                ("setting", setting.key),
                ("value", if hidden { "(hidden)" } else { &setting.value }),
                ("source", &setting.source),
                ("about", setting.about),
            ]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), Value::from(value)))
            .collect()
        };
        self.0.iter().map(row).collect()
    }
}

/// `highwater config`.
pub fn config(command: ConfigCommand) -> Result<ExitCode, Failure> {
    match command {
        ConfigCommand::Show { output } => {
            let columns = ["setting", "value", "source", "about"].map(str::to_owned);
            output::print(output.output, &columns, &Settings::find(&[])?.rows())?;
        }
        ConfigCommand::Check => {
            let settings = Settings::find(&[])?;
            settings.node()?;
            settings.listen()?;
            settings.tls()?;
            settings.calls()?;
            eprintln!("the settings are fine");
        }
    }
    Ok(ExitCode::SUCCESS)
}
