//! Trained models, by the name of their version: `score('fraud_v3', …)`. A version never changes.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use highwater_model::Model;

/// The models that functions ask; shared by every plan.
#[derive(Debug, Default)]
pub struct Models(RwLock<BTreeMap<String, Known>>);

/// The versions of one model.
type Known = BTreeMap<u32, Arc<Model>>;

/// The name of a version: `fraud_v3`.
pub fn version_name(model: &str, version: u32) -> String {
    format!("{model}_v{version}")
}

/// Model and version that a name says; no version when it says none.
pub fn split_version(name: &str) -> (&str, Option<u32>) {
    let version = name.rsplit_once("_v").and_then(|(model, version)| Some((model, version.parse().ok()?)));
    version.map_or((name, None), |(model, version)| (model, Some(version)))
}

impl Models {
    /// The version that a name says, or the newest one of the model that it says.
    pub fn get(&self, name: &str) -> Option<Arc<Model>> {
        let models = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let (model, version) = split_version(name);
        match version.and_then(|version| models.get(model)?.get(&version)) {
            Some(found) => Some(found.clone()),
            None => models.get(name)?.last_key_value().map(|(_, newest)| newest.clone()),
        }
    }

    /// The number of the newest version; 0 when there is none.
    pub fn newest(&self, model: &str) -> u32 {
        let models = self.0.read().unwrap_or_else(PoisonError::into_inner);
        models.get(model).and_then(|versions| versions.last_key_value()).map_or(0, |(version, _)| *version)
    }

    /// Puts a version in place.
    pub fn put(&self, model: &str, version: u32, trained: Arc<Model>) {
        let mut models = self.0.write().unwrap_or_else(PoisonError::into_inner);
        models.entry(model.to_owned()).or_default().insert(version, trained);
    }

    /// The names of all versions, for messages.
    pub fn names(&self) -> Vec<String> {
        let models = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let names = |(model, versions): (&String, &Known)| {
            versions.keys().map(|version| version_name(model, *version)).collect::<Vec<_>>()
        };
        models.iter().flat_map(names).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_its_version() {
        assert_eq!(split_version("fraud_v3"), ("fraud", Some(3)));
        assert_eq!(split_version("fraud_v3_v12"), ("fraud_v3", Some(12)));
        assert_eq!(split_version("fraud"), ("fraud", None));
        assert_eq!(split_version("fraud_vx"), ("fraud_vx", None));
        assert_eq!(version_name("fraud", 3), "fraud_v3");
    }
}
