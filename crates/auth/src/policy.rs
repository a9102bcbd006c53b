//! What is allowed. Cedar decides by `policies.cedar`, checked against `policies.cedarschema` when the program
//! starts; packs may add policies of their own. What no policy permits is refused.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use cedar_policy::{
    Authorizer, Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, PolicySet, Request,
    RestrictedExpression, Schema, ValidationMode, Validator,
};
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
pub const ACTIONS: [&str; 16] = [
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
    "self",
];

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
            known if ACTIONS.contains(&known) => known,
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

/// What a decision depends on, as a key.
type Remembered = (Arc<str>, u64, u64);

/// The policies in force.
pub struct Policies {
    policies: PolicySet,
    authorizer: Authorizer,
    decided: Cache<Remembered, bool>,
    hasher: std::hash::RandomState,
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
                let policy = policy.new_id(cedar_policy::PolicyId::new(format!("{name}: {id}")));
                policies.add(policy).map_err(|error| invalid(format!("{name}: {error}")))?;
            }
        }
        let validated = Validator::new(schema).validate(&policies, ValidationMode::Strict);
        if let Some(error) = validated.validation_errors().next() {
            return Err(invalid(error));
        }
        Ok(Self {
            policies,
            authorizer: Authorizer::new(),
            decided: Cache::new(REMEMBERED),
            hasher: std::hash::RandomState::new(),
        })
    }

    /// Whether it may be done. Remembered until what is known about whoever asks changes.
    pub fn allows(&self, identity: &Identity, asked: Asked<'_>) -> bool {
        use std::hash::BuildHasher;
        // Roles and grants can be those of a role switch, so they are part of what is remembered.
        let about =
            self.hasher.hash_one((&identity.roles, &identity.grants, identity.principal.everywhere, asked));
        let key = (identity.principal.name.clone(), identity.version, about);
        if let Some(allowed) = self.decided.get(&key) {
            return allowed;
        }
        let allowed = self.decide(identity, asked).allowed;
        self.decided.insert(key, allowed);
        allowed
    }

    /// Whether it may be done, and why.
    pub fn decide(&self, identity: &Identity, asked: Asked<'_>) -> Decision {
        let refused = |error: String| Decision { allowed: false, reasons: Vec::new(), errors: vec![error] };
        let (request, entities) = match self.request(identity, asked) {
            Ok(request) => request,
            Err(error) => return refused(error.0),
        };
        let response = self.authorizer.is_authorized(&request, &self.policies, &entities);
        let errors: Vec<String> = response.diagnostics().errors().map(ToString::to_string).collect();
        // A rule that can't be evaluated might have been one that forbids.
        let allowed = response.decision() == cedar_policy::Decision::Allow && errors.is_empty();
        let mut reasons: Vec<String> = response.diagnostics().reason().map(ToString::to_string).collect();
        reasons.sort();
        Decision { allowed, reasons, errors }
    }

    fn request(&self, identity: &Identity, asked: Asked<'_>) -> Result<(Request, Entities), InvalidPolicy> {
        let types = TYPES.as_ref().ok_or_else(|| invalid("the names of the schema can't be read"))?;
        let uid =
            |of: &EntityTypeName, id: &str| EntityUid::from_type_name_and_id(of.clone(), EntityId::new(id));
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        let kind = if identity.key.is_some() { &types.client } else { &types.user };
        let principal = uid(kind, &identity.principal.name);
        let roles: HashSet<EntityUid> = identity.roles.iter().map(|role| uid(&types.role, role)).collect();
        let grants = identity.grants.iter().map(|grant| text(grant));
        let home = identity.principal.tenant.as_ref() == HOME;
        let attributes = HashMap::from([
            ("grants".to_owned(), RestrictedExpression::new_set(grants)),
            ("home".to_owned(), RestrictedExpression::new_bool(home)),
        ]);
        let entity = Entity::new(principal.clone(), attributes, roles.clone()).map_err(invalid)?;
        let resource = uid(&types.resource, &asked.resource());
        let flag = RestrictedExpression::new_bool;
        let system = HashMap::from([
            ("system".to_owned(), flag(asked.name.starts_with('_'))),
            ("shared".to_owned(), flag(asked.shared)),
        ]);
        let target = Entity::new(resource.clone(), system, HashSet::new()).map_err(invalid)?;
        let action = uid(&types.action, asked.action());
        let groups = action_groups();
        let parents: HashSet<EntityUid> = groups
            .iter()
            .filter(|(name, _)| *name == asked.action())
            .map(|(_, group)| uid(&types.action, group))
            .collect();
        let act = Entity::new_no_attrs(action.clone(), parents);
        let here = format!("{}@{}", asked.permission, asked.resource());
        let context = Context::from_pairs([
            ("permission".to_owned(), text(asked.permission)),
            ("here".to_owned(), text(&here)),
        ])
        .map_err(invalid)?;
        let entities = Entities::from_entities([entity, target, act], None).map_err(invalid)?;
        Ok((Request::new(principal, action, resource, context, None).map_err(invalid)?, entities))
    }
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
    fn what_was_decided_for_an_earlier_version_counts_no_more() {
        let policies = policies();
        let mut ada = with(None, &["view_metrics"]);
        assert!(policies.allows(&ada, Asked::node("view_metrics")));
        ada.version += 1;
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
