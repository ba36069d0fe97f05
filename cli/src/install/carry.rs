//! Carrying a plan out: control plane first, and agents when there is somebody to ask.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::plan::Plan;
use crate::{
    args::lifecycle::Carry,
    cluster::{
        ApiError, Cluster,
        client::Change,
        kinds::{collection, path, path_of},
        rollout::{self, PERIOD},
    },
    exit::Failure,
    manifest::{AGENT, CONTROL, TRUST_BUNDLE, crds, objects::Object},
    record,
};

/// What was done.
#[derive(Debug, Default)]
pub struct Done {
    /// Objects, and what became of them.
    pub applied: Vec<(String, Change)>,
    /// Objects whose kind the cluster does not know.
    pub skipped: Vec<String>,
    /// Objects that were removed.
    pub removed: Vec<String>,
    /// Whether everything is ready; none when nobody waited.
    pub ready: Option<bool>,
    /// What is missing, and what to do.
    pub failure: Option<Failure>,
}

/// Carries it out. What went wrong while waiting is part of the answer: everything is applied then.
///
/// # Errors
/// The API server refuses an object, or does not answer.
pub async fn out(cluster: &Cluster, plan: &Plan, carry: &Carry) -> Result<Done, Failure> {
    let mut done = Done::default();
    let deadline = Instant::now() + Duration::from_secs(carry.timeout);
    let mut steps = Steps { cluster, plan, carry, done: &mut done };
    if !carry.skip_crds {
        steps.define().await?;
    }
    if carry.dry_run {
        steps.apply(plan.objects.iter()).await?;
        done.removed = plan.gone.iter().map(ToString::to_string).collect();
        return Ok(done);
    }
    let namespace = &plan.namespace;
    // The record comes right behind its namespace, so that an interrupted installation can be removed.
    steps.apply(plan.objects.iter().filter(|o| o.kind() == "Namespace")).await?;
    record::write(cluster, namespace, &plan.record).await?;
    steps.apply(plan.others().filter(|o| o.kind() != "Namespace")).await?;
    if carry.wait
        && let Err(failure) = control(cluster, namespace, deadline).await
    {
        // Agents are applied all the same: they wait for their control plane by themselves.
        steps.done.failure = Some(failure);
    }
    steps.apply(plan.agents()).await?;
    steps.prune().await?;
    record::write(cluster, namespace, &record::Record { complete: true, ..plan.record.clone() }).await?;
    if carry.wait {
        if done.failure.is_none() {
            let agents = rollout::wait(cluster, ("DaemonSet", namespace, AGENT), deadline, &mut say).await;
            done.failure = agents.err();
        }
        done.ready = Some(done.failure.is_none());
    }
    Ok(done)
}

fn say(line: &str) {
    eprintln!("  {line}");
}

/// Waits for the control plane, and for the roots that it writes: without them agents cannot start, and
/// the kubelet tries again more and more rarely.
async fn control(cluster: &Cluster, namespace: &str, deadline: Instant) -> Result<(), Failure> {
    rollout::wait(cluster, ("Deployment", namespace, CONTROL), deadline, &mut say).await?;
    let bundle = path("v1", "ConfigMap", namespace, TRUST_BUNDLE);
    while cluster.get(&bundle).await?.is_none() {
        if Instant::now() >= deadline {
            let reason =
                format!("the control plane did not write ConfigMap {namespace}/{TRUST_BUNDLE} in time");
            return Err(Failure::new(reason, format!("kubectl -n {namespace} logs deployment/{CONTROL}")));
        }
        sleep(PERIOD).await;
    }
    Ok(())
}

struct Steps<'a> {
    cluster: &'a Cluster,
    plan: &'a Plan,
    carry: &'a Carry,
    done: &'a mut Done,
}

impl Steps<'_> {
    /// Makes the definitions of kinds that are missing. They are not of the installation: removing one would
    /// remove every object of its kind.
    async fn define(&mut self) -> Result<(), Failure> {
        for body in crds::all() {
            let path = path_of(&body);
            if self.cluster.get(&path).await?.is_none() {
                let change = self.cluster.apply(&path, &body, self.carry.dry_run).await?;
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                self.done.applied.push((format!("CustomResourceDefinition {name}"), change));
            }
        }
        Ok(())
    }

    async fn apply(&mut self, objects: impl Iterator<Item = &Object>) -> Result<(), Failure> {
        let dry_run = self.carry.dry_run;
        let namespace = path("v1", "Namespace", "", &self.plan.namespace);
        let homeless = dry_run && self.cluster.get(&namespace).await?.is_none();
        for object in objects {
            // The server cannot check an object of a namespace that is not there yet.
            if homeless && !object.namespace().is_empty() {
                self.done.applied.push((object.to_string(), Change::Created));
                continue;
            }
            match self.cluster.apply(&path_of(&object.body), &object.body, dry_run).await {
                Ok(change) => self.done.applied.push((object.to_string(), change)),
                Err(error) if error.status == 404 && self.unknown(object).await? => {
                    self.done.skipped.push(object.to_string());
                }
                Err(error) => return Err(refused(object, error)),
            }
        }
        Ok(())
    }

    /// Whether the cluster does not know the kind.
    async fn unknown(&self, object: &Object) -> Result<bool, ApiError> {
        let place = collection(object.api_version(), object.kind(), "");
        Ok(self.cluster.get(&format!("{place}?limit=1")).await?.is_none())
    }

    async fn prune(&mut self) -> Result<(), Failure> {
        for object in &self.plan.gone {
            if self.cluster.delete(&object.path()).await? {
                self.done.removed.push(object.to_string());
            }
        }
        Ok(())
    }
}

fn refused(object: &Object, error: ApiError) -> Failure {
    Failure::new(format!("{object} is not applied: {}", error.message), error.next())
}
