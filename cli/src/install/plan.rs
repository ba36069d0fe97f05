//! What is to be applied and removed.

use crate::{
    args::lifecycle::Choice,
    exit::Failure,
    manifest::{
        objects::{File, Object},
        resolve,
        values::Values,
    },
    record::{Named, Record},
};

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Namespace of Culvert's own programs.
    pub namespace: String,
    /// Objects, in order.
    pub objects: Vec<Object>,
    /// Objects of the installation before that are no longer wanted.
    pub gone: Vec<Named>,
    /// What the cluster will hold about it.
    pub record: Record,
}

impl Plan {
    /// From settings, and what was there before.
    pub fn new(values: &Values, before: &Record) -> Self {
        let objects = resolve::objects(values);
        let names: Vec<_> = objects.iter().map(Named::of).collect();
        let gone = before.objects.iter().filter(|old| !names.iter().any(|new| new.same(old))).cloned();
        let version = env!("CARGO_PKG_VERSION");
        let previous = if before.version == version { &before.before } else { &before.version };
        let record = Record {
            version: version.to_owned(),
            before: previous.clone(),
            complete: false,
            settings: values.changed(),
            objects: names.clone(),
        };
        Self { namespace: values.namespace().to_owned(), gone: gone.collect(), objects, record }
    }

    /// The agents, which come after everything else runs.
    pub fn agents(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(|object| object.file == File::Agent)
    }

    /// Everything but the agents.
    pub fn others(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(|object| object.file != File::Agent)
    }
}

/// Puts a file of settings and single ones in.
///
/// # Errors
/// One of them is unknown or of another kind.
pub fn choose(values: &mut Values, choice: &Choice) -> Result<(), Failure> {
    if let Some(file) = &choice.values {
        values.load(file)?;
    }
    choice.set.iter().try_for_each(|assignment| values.set(assignment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_setting_takes_away_is_removed_and_versions_are_remembered() {
        let mut values = Values::defaults("n");
        values.set("control.podDisruptionBudget=true").unwrap();
        let mut before = Plan::new(&values, &Record::default()).record;
        assert_eq!(before.before, "");
        before.version = "0.0.9".to_owned();
        let plan = Plan::new(&Values::defaults("n"), &before);
        let gone: Vec<_> = plan.gone.iter().map(ToString::to_string).collect();
        assert_eq!(gone, ["PodDisruptionBudget n/culvert-control"]);
        assert_eq!((plan.record.before.as_str(), plan.record.complete), ("0.0.9", false));
        assert!(plan.agents().all(|object| object.kind() == "DaemonSet"));
    }
}
