//! Asking every program at the same time.

use futures_util::future::join_all;

use super::{Agent, Control, Mesh, Unanswered};
use crate::{
    contract::{AgentConfig, Client, Objects},
    endpoint::Endpoint,
    live::{
        client::{AskError, get, get_json},
        discover::Targets,
    },
};

pub(super) async fn gather(targets: Targets) -> Mesh {
    let asked = async {
        match targets.control {
            Some(endpoint) => Some(control(endpoint).await),
            None => None,
        }
    };
    let agents = join_all(targets.agents.into_iter().map(|(node, endpoint)| agent(node, endpoint)));
    let (control, agents) = tokio::join!(asked, agents);
    Mesh { world: targets.world, control, agents, ready: true, next: Vec::new() }
}

async fn control(endpoint: Endpoint) -> Control {
    let (readiness, objects, clients) = tokio::join!(
        readiness(&endpoint),
        get_json::<Objects>(&endpoint, "/debug/objects"),
        get_json::<Vec<Client>>(&endpoint, "/debug/clients"),
    );
    let mut failures = Vec::new();
    let (ready, says) = keep(readiness, &mut failures).unwrap_or_default();
    let objects = keep(objects, &mut failures).unwrap_or_default();
    let clients = keep(clients, &mut failures).unwrap_or_default();
    let (count, findings) = (objects.objects.len(), objects.findings);
    Control { endpoint, ready, says, objects: count, findings, clients, failures }
}

async fn agent(node: Option<String>, endpoint: Endpoint) -> Agent {
    let (readiness, config) =
        tokio::join!(readiness(&endpoint), get_json::<AgentConfig>(&endpoint, "/debug/config"));
    let mut failures = Vec::new();
    let (ready, says) = keep(readiness, &mut failures).unwrap_or_default();
    let config = keep(config, &mut failures);
    let node = config.as_ref().map(|c| c.node.clone()).or(node).unwrap_or_default();
    let ready = ready && config.as_ref().is_some_and(|c| c.ready);
    Agent { endpoint, node, ready, says, config, failures }
}

/// Whether `/readyz` says yes, and its text.
async fn readiness(endpoint: &Endpoint) -> Result<(bool, String), AskError> {
    let answer = get(endpoint, "/readyz").await?;
    Ok((answer.status == 200, answer.reason()))
}

/// The answer; a failure is kept once, also when several questions fail in the same way.
fn keep<T>(answer: Result<T, AskError>, failures: &mut Vec<Unanswered>) -> Option<T> {
    let error = match answer {
        Ok(answer) => return Some(answer),
        Err(error) => error,
    };
    let failure = Unanswered { reason: error.to_string(), next: error.next().to_owned() };
    if !failures.contains(&failure) {
        failures.push(failure);
    }
    None
}
