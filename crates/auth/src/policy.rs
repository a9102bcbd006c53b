//! What is allowed. Cedar decides by `policies.cedar`, checked against `policies.cedarschema` when the program
//! starts; packs may add policies of their own. What no policy permits is refused.
//!
//! Rules speak of roles, permissions and things, never of people by name: who holds what is said by commands,
//! whose history the log keeps. So all who are in the same [`Situation`] get the same answer, it is remembered for
//! all of them, and what is remembered can't be out of date.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::str::FromStr;
use std::sync::LazyLock;

use cedar_policy::{
    Authorizer, Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, PolicySet, Request,
    RestrictedExpression, Schema, ValidationMode, Validator,
};
use quick_cache::Equivalent;
use quick_cache::sync::Cache;

use crate::directory::Identity;
use highwater_event::identity::HOME;

/// The policies that every node has.
pub const BUILT_IN: &str = include_str!("policies.cedar");
const SCHEMA: &str = include_str!("policies.cedarschema");
/// Decisions that are remembered.
const REMEMBERED: usize = 65_536;

/// Roles that users may have.
pub const ROLES: [&str; 7] =
    ["admin", "superuser", "DataEngineer", "DataAnalyst", "SecurityAuditor", "Client", "Developer"];

/// Permissions that actions of the engine need; each is an action of its own in the policies. Any other
/// permission is one of a declared endpoint or an application: `use`.
pub const ACTIONS: [&str; 18] = [
    "read",
    "query",
    "describe",
    "view_own",
    "ingest",
    "replay",
    "declare",
    "operate",
    "read_metrics",
    "reveal",
    "read_audit",
    "manage_users",
    "manage_permissions",
    "manage_keys",
    "back_up",
    "rotate_keys",
    "erase",
    "self",
];

/// Whether somebody may do what they may do without the approval of a second person; nobody is given this, rules forbid it.
pub const ALONE: [&str; 2] = ["replay_alone", "erase_alone"];

/// The permissions of the transaction application.
pub const APPLICATION_PERMISSIONS: [&str; 10] = [
    "view_products",
    "add_products",
    "edit_products",
    "view_expensive_product",
    "view_datalake",
    "view_metrics",
    "search_datalake",
    "trigger_ml_model",
    "repush_transaction",
    "repush_all_transactions",
];

/// May this be done to that?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Asked<'a> {
    /// The permission that it needs: an action of the engine, or one with a name of its own.
    pub permission: &'a str,
    /// `stream`, `table`, `endpoint`, `node`.
    pub kind: &'a str,
    /// Which.
    pub name: &'a str,
    /// Its rows belong to tenants, and each sees its own only.
    pub shared: bool,
}

impl<'a> Asked<'a> {
    /// Something that is done to the node as a whole.
    pub fn node(permission: &'a str) -> Self {
        Self { permission, kind: "node", name: "", shared: false }
    }

    /// Something that is done to a stream, table or endpoint.
    pub fn on(permission: &'a str, kind: &'a str, name: &'a str) -> Self {
        Self { permission, kind, name, shared: false }
    }

    /// The same of something whose rows belong to tenants.
    pub fn shared(self, shared: bool) -> Self {
        Self { shared, ..self }
    }

    /// `stream:orders`; `node` for the node.
    pub fn resource(&self) -> String {
        if self.name.is_empty() { self.kind.to_owned() } else { format!("{}:{}", self.kind, self.name) }
    }

    fn action(&self) -> &'a str {
        match self.permission {
            known if ACTIONS.contains(&known) || ALONE.contains(&known) => known,
            // Packs give what they hide names of its own: reveal_users.
            other if other.starts_with("reveal_") => "reveal",
            _ => "use",
        }
    }
}

/// What was decided, and by which rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may be done.
    pub allowed: bool,
    /// The `@id` of each policy that says so.
    pub reasons: Vec<String>,
    /// Policies that could not be evaluated; with any, nothing is allowed.
    pub errors: Vec<String>,
}

/// A policy is not one, or says nothing that can be checked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPolicy(String);

/// All that rules can tell apart: a decision is a function of it and of nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Situation<'a> {
    /// Whoever asks does it through a key.
    client: bool,
    /// Is of the tenant that owns the node.
    home: bool,
    /// Holds the permission for everything.
    held: bool,
    /// Holds it for this one thing.
    held_here: bool,
    roles: Cow<'a, BTreeSet<String>>,
    permission: Cow<'a, str>,
    kind: Cow<'a, str>,
    name: Cow<'a, str>,
    shared: bool,
}

impl<'a> Situation<'a> {
    fn new(identity: &'a Identity, asked: Asked<'a>) -> Self {
        let grants = &identity.grants;
        let here = || format!("{}@{}", asked.permission, asked.resource());
        Self {
            client: identity.key.is_some(),
            home: identity.principal.tenant.as_ref() == HOME,
            held: grants.contains(asked.permission),
            held_here: !grants.is_empty() && grants.contains(&here()),
            roles: Cow::Borrowed(&identity.roles),
            permission: Cow::Borrowed(asked.permission),
            kind: Cow::Borrowed(asked.kind),
            name: Cow::Borrowed(asked.name),
            shared: asked.shared,
        }
    }

    fn asked(&self) -> Asked<'_> {
        Asked { permission: &self.permission, kind: &self.kind, name: &self.name, shared: self.shared }
    }

    fn into_owned(self) -> Situation<'static> {
        Situation {
            client: self.client,
            home: self.home,
            held: self.held,
            held_here: self.held_here,
            roles: Cow::Owned(self.roles.into_owned()),
            permission: Cow::Owned(self.permission.into_owned()),
            kind: Cow::Owned(self.kind.into_owned()),
            name: Cow::Owned(self.name.into_owned()),
            shared: self.shared,
        }
    }
}

/// A situation that is looked for among those that are remembered.
#[derive(Hash)]
struct Sought<'b, 'a>(&'b Situation<'a>);

impl Equivalent<Situation<'static>> for Sought<'_, '_> {
    fn equivalent(&self, remembered: &Situation<'static>) -> bool {
        self.0 == remembered
    }
}

/// The policies in force.
pub struct Policies {
    policies: PolicySet,
    authorizer: Authorizer,
    decided: Cache<Situation<'static>, bool>,
}

struct Types {
    user: EntityTypeName,
    client: EntityTypeName,
    role: EntityTypeName,
    action: EntityTypeName,
    resource: EntityTypeName,
}

/// `None` can't be: the names are constants, and a test reads them.
static TYPES: LazyLock<Option<Types>> = LazyLock::new(|| {
    let name = |name: &str| EntityTypeName::from_str(name).ok();
    Some(Types {
        user: name("User")?,
        client: name("Client")?,
        role: name("Role")?,
        action: name("Action")?,
        resource: name("Resource")?,
    })
});

fn invalid(error: impl std::fmt::Display) -> InvalidPolicy {
    InvalidPolicy(error.to_string())
}

impl Policies {
    /// The policies of every node, and those of packs: name and text.
    pub fn new(packs: &[(String, String)]) -> Result<Self, InvalidPolicy> {
        let (schema, warnings) = Schema::from_cedarschema_str(SCHEMA).map_err(invalid)?;
        if let Some(warning) = warnings.into_iter().next() {
            return Err(invalid(warning));
        }
        let mut policies = PolicySet::new();
        let sources = [("highwater", BUILT_IN)].into_iter();
        for (name, text) in sources.chain(packs.iter().map(|(name, text)| (name.as_str(), text.as_str()))) {
            let set = PolicySet::from_str(text).map_err(|error| invalid(format!("{name}: {error}")))?;
            for policy in set.policies() {
                let id = policy.annotation("id").map_or_else(|| policy.id().to_string(), str::to_owned);
                refuse_people(&policy.to_json().map_err(invalid)?)
                    .map_err(|person| invalid(format!("{name}: {id}: {person}")))?;
                let policy = policy.new_id(cedar_policy::PolicyId::new(format!("{name}: {id}")));
                policies.add(policy).map_err(|error| invalid(format!("{name}: {error}")))?;
            }
        }
        let validated = Validator::new(schema).validate(&policies, ValidationMode::Strict);
        if let Some(error) = validated.validation_errors().next() {
            return Err(invalid(error));
        }
        Ok(Self { policies, authorizer: Authorizer::new(), decided: Cache::new(REMEMBERED) })
    }

    /// Whether it may be done, as it was decided for whoever asked in the same situation before.
    pub fn allows(&self, identity: &Identity, asked: Asked<'_>) -> bool {
        let situation = Situation::new(identity, asked);
        if let Some(allowed) = self.decided.get(&Sought(&situation)) {
            return allowed;
        }
        let allowed = self.evaluate(&situation).allowed;
        self.decided.insert(situation.into_owned(), allowed);
        allowed
    }

    /// Whether it may be done, and why.
    pub fn decide(&self, identity: &Identity, asked: Asked<'_>) -> Decision {
        self.evaluate(&Situation::new(identity, asked))
    }

    fn evaluate(&self, situation: &Situation<'_>) -> Decision {
        let refused = |error: String| Decision { allowed: false, reasons: Vec::new(), errors: vec![error] };
        let (request, entities) = match request(situation) {
            Ok(request) => request,
            Err(error) => return refused(error.0),
        };
        let response = self.authorizer.is_authorized(&request, &self.policies, &entities);
        let errors: Vec<String> = response.diagnostics().errors().map(ToString::to_string).collect();
        // A rule that can't be evaluated might have been one that forbids.
        let allowed = response.decision() == cedar_policy::Decision::Allow && errors.is_empty();
        let mut reasons: Vec<String> = response.diagnostics().reason().map(name_of).collect();
        reasons.sort();
        Decision { allowed, reasons, errors }
    }
}

/// The id of a rule as it was written.
fn name_of(id: &cedar_policy::PolicyId) -> String {
    let name: &str = id.as_ref();
    name.to_owned()
}

/// A rule that names a user or a client would never hold: nobody is known by name here.
fn refuse_people(policy: &serde_json::Value) -> Result<(), String> {
    use serde_json::Value;
    match policy {
        Value::Object(members) => {
            if let (Some(Value::String(kind)), Some(id)) = (members.get("type"), members.get("id"))
                && (kind == "User" || kind == "Client")
            {
                return Err(format!(
                    "rules can't name people ({kind}::{id}): give them a role or a permission, and name that"
                ));
            }
            members.values().try_for_each(refuse_people)
        }
        Value::Array(members) => members.iter().try_for_each(refuse_people),
        _ => Ok(()),
    }
}

/// A situation in Cedar's terms.
fn request(situation: &Situation<'_>) -> Result<(Request, Entities), InvalidPolicy> {
    let types = TYPES.as_ref().ok_or_else(|| invalid("the names of the schema can't be read"))?;
    let uid = |of: &EntityTypeName, id: &str| EntityUid::from_type_name_and_id(of.clone(), EntityId::new(id));
    let flag = RestrictedExpression::new_bool;
    let asked = situation.asked();
    let principal = uid(if situation.client { &types.client } else { &types.user }, "caller");
    let roles: HashSet<EntityUid> = situation.roles.iter().map(|role| uid(&types.role, role)).collect();
    let home = HashMap::from([("home".to_owned(), flag(situation.home))]);
    let caller = Entity::new(principal.clone(), home, roles).map_err(invalid)?;
    let resource = uid(&types.resource, &asked.resource());
    let of_resource = HashMap::from([
        ("system".to_owned(), flag(asked.name.starts_with('_'))),
        ("shared".to_owned(), flag(asked.shared)),
    ]);
    let target = Entity::new(resource.clone(), of_resource, HashSet::new()).map_err(invalid)?;
    let action = uid(&types.action, asked.action());
    let groups = action_groups().iter().filter(|(name, _)| *name == asked.action());
    let parents: HashSet<EntityUid> = groups.map(|(_, group)| uid(&types.action, group)).collect();
    let act = Entity::new_no_attrs(action.clone(), parents);
    let permission = RestrictedExpression::new_string(asked.permission.to_owned());
    let context = Context::from_pairs([
        ("permission".to_owned(), permission),
        ("held".to_owned(), flag(situation.held)),
        ("held_here".to_owned(), flag(situation.held_here)),
    ])
    .map_err(invalid)?;
    let entities = Entities::from_entities([caller, target, act], None).map_err(invalid)?;
    Ok((Request::new(principal, action, resource, context, None).map_err(invalid)?, entities))
}

/// Which action is in which group, as the schema says.
fn action_groups() -> &'static [(&'static str, &'static str)] {
    &[
        ("read", "reading"),
        ("read", "data"),
        ("query", "reading"),
        ("query", "data"),
        ("describe", "reading"),
        ("describe", "data"),
        ("view_own", "reading"),
        ("view_own", "data"),
        ("ingest", "data"),
        ("replay", "data"),
        ("declare", "data"),
        ("declare", "node"),
        ("operate", "data"),
        ("operate", "node"),
        ("read_metrics", "data"),
        ("manage_users", "people"),
        ("manage_permissions", "people"),
        ("manage_keys", "people"),
        ("back_up", "node"),
        ("rotate_keys", "node"),
        ("erase", "node"),
        ("replay_alone", "alone"),
        ("erase_alone", "alone"),
    ]
}

/// The permissions that a set of roles and grants allows on the node, of those that are known.
pub fn allowed_permissions(policies: &Policies, identity: &Identity) -> BTreeSet<&'static str> {
    let known = ACTIONS.iter().chain(&APPLICATION_PERMISSIONS);
    known.copied().filter(|permission| policies.allows(identity, Asked::node(permission))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_event::Principal;
    use std::sync::Arc;

    fn policies() -> Policies {
        Policies::new(&[]).unwrap()
    }

    fn with(role: Option<&str>, grants: &[&str]) -> Identity {
        let mut identity = Identity::nobody();
        identity.principal = Principal::new("ada", HOME);
        identity.grants = Arc::new(grants.iter().map(|grant| (*grant).to_owned()).collect());
        match role {
            Some(role) => identity.with_role(role),
            None => identity,
        }
    }

    #[test]
    fn a_second_person_is_needed_where_a_rule_says_so() {
        let stream = |name| Asked::on("replay_alone", "stream", name);
        let policies = policies();
        for role in ROLES {
            assert!(policies.allows(&with(Some(role), &[]), stream("orders")), "{role}");
        }
        let rule =
            "forbid (principal, action == Action::\"replay_alone\", resource == Resource::\"stream:orders\")
                    unless { principal in Role::\"admin\" };";
        let policies = Policies::new(&[("eyes".into(), rule.into())]).unwrap();
        let engineer = with(Some("DataEngineer"), &["replay"]);
        assert!(!policies.allows(&engineer, stream("orders")));
        assert!(policies.allows(&engineer, stream("clicks")));
        assert!(policies.allows(&engineer, Asked::on("replay", "stream", "orders")));
        assert!(policies.allows(&with(Some("admin"), &[]), stream("orders")));
        assert!(policies.allows(&engineer, Asked::node("erase_alone")));
    }

    #[test]
    fn what_no_rule_permits_is_refused() {
        let policies = policies();
        let nobody = with(None, &[]);
        for permission in
            ACTIONS.iter().chain(&APPLICATION_PERMISSIONS).filter(|permission| **permission != "self")
        {
            let decision = policies.decide(&nobody, Asked::node(permission));
            assert!(!decision.allowed && decision.errors.is_empty(), "{permission}: {decision:?}");
        }
    }

    #[test]
    fn roles_allow_what_the_page_says() {
        let policies = policies();
        let stream = |permission| Asked::on(permission, "stream", "orders");
        let trail = Asked::on("read", "stream", "_audit");
        let table = [
            // role, reads, brings, declares, reads the trail as a stream, manages people
            ("admin", true, true, true, true, true),
            ("superuser", true, true, true, true, false),
            ("DataEngineer", true, true, true, false, false),
            ("DataAnalyst", true, false, false, false, false),
            ("SecurityAuditor", true, false, false, true, false),
            ("Client", false, false, false, false, false),
            ("Developer", false, false, false, false, false),
        ];
        for (role, reads, brings, declares, audits, manages) in table {
            let identity = with(Some(role), &[]);
            let allows = |asked| policies.allows(&identity, asked);
            assert_eq!(allows(stream("read")), reads, "{role} reads");
            assert_eq!(allows(stream("ingest")), brings, "{role} brings");
            assert_eq!(allows(Asked::node("declare")), declares, "{role} declares");
            assert_eq!(allows(trail), audits, "{role} reads the trail");
            assert_eq!(allows(Asked::node("manage_users")), manages, "{role} manages");
            let everything = ["admin", "superuser"].contains(&role);
            let lake = everything || ["DataEngineer", "DataAnalyst"].contains(&role);
            assert_eq!(allows(Asked::node("view_metrics")), lake, "{role} uses metrics");
            assert_eq!(allows(Asked::node("trigger_ml_model")), everything, "{role} trains");
        }
    }

    #[test]
    fn grants_hold_everywhere_or_on_one_thing() {
        let policies = policies();
        let one = with(None, &["read@stream:orders", "view_metrics"]);
        assert!(policies.allows(&one, Asked::on("read", "stream", "orders")));
        assert!(!policies.allows(&one, Asked::on("read", "stream", "order")));
        assert!(!policies.allows(&one, Asked::on("read", "table", "orders")));
        assert!(policies.allows(&one, Asked::on("view_metrics", "endpoint", "/api/top")));
        let mut other_tenant = with(Some("admin"), &["declare"]);
        other_tenant.principal.tenant = "acme".into();
        assert!(!policies.allows(&other_tenant, Asked::node("declare")), "the node is not theirs");
        assert!(policies.allows(&other_tenant, Asked::node("manage_users")));
        let mut key = with(None, &["ingest", "manage_keys", "declare"]);
        key.key = Some(("k".into(), 60));
        assert!(policies.allows(&key, Asked::on("ingest", "stream", "orders")));
        assert!(
            !policies.allows(&key, Asked::node("manage_keys"))
                && !policies.allows(&key, Asked::node("declare"))
        );
    }

    #[test]
    fn what_was_held_counts_no_more() {
        let policies = policies();
        let mut ada = with(None, &["view_metrics"]);
        assert!(policies.allows(&ada, Asked::node("view_metrics")));
        ada.grants = Arc::default();
        assert!(!policies.allows(&ada, Asked::node("view_metrics")));
    }

    #[test]
    fn packs_add_policies_and_wrong_ones_are_refused() {
        let good = r#"permit (principal in Role::"Client", action == Action::"use", resource) when { context.permission == "view_top" };"#;
        let policies = Policies::new(&[("pack".into(), good.into())]).unwrap();
        assert!(policies.allows(&with(Some("Client"), &[]), Asked::node("view_top")));
        assert!(!policies.allows(&with(Some("Client"), &[]), Asked::node("view_metrics")));
        for bad in [
            "permit (",
            r#"permit (principal, action == Action::"fly", resource);"#,
            r#"permit (principal, action, resource) when { principal.shoe };"#,
            r#"permit (principal == User::"ada", action, resource);"#,
            r#"permit (principal, action, resource) unless { principal == Client::"acme" };"#,
        ] {
            assert!(Policies::new(&[("pack".into(), bad.into())]).is_err(), "{bad}");
        }
    }

    #[test]
    fn groups_are_those_of_the_schema() {
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).unwrap();
        let entities = schema.action_entities().unwrap();
        for name in ACTIONS.iter().chain(&["use"]) {
            let uid = EntityUid::from_str(&format!("Action::\"{name}\"")).unwrap();
            let mut declared: Vec<String> =
                entities.ancestors(&uid).unwrap().map(|group| group.id().unescaped().to_owned()).collect();
            let mut ours: Vec<String> = action_groups()
                .iter()
                .filter(|(act, _)| act == name)
                .map(|(_, group)| (*group).to_owned())
                .collect();
            declared.sort();
            ours.sort();
            assert_eq!(ours, declared, "{name}");
        }
    }
}
