//! Explaining from a running mesh: the control plane's decisions, with L7, and the kernel entries of
//! the agent on the client's node.

use futures_util::future::join_all;

use super::{AgentView, Told, compare};
use crate::{
    args::Explain,
    contract::Explained,
    endpoint::Endpoint,
    exit::Failure,
    live::{
        client::{AskError, get_json},
        discover::Targets,
        explain_path,
        pods::targets,
    },
};

/// What the agents said together: the first that has the client, and why the others have nothing.
struct Agents {
    view: Option<(Endpoint, AgentView)>,
    others: Vec<Failure>,
}

pub(super) async fn tell(options: &Explain) -> Result<Told, Failure> {
    let targets = targets(&options.mesh).await?;
    let path = explain_path(&options.source, &options.destination);
    let (control, agents) = tokio::join!(ask_control(&targets, &path), ask_agents(&targets, &path));
    let told = |by: &Endpoint, explanation, notes| Told {
        source: options.source.clone(),
        destination: options.destination.clone(),
        by: by.to_string(),
        notes,
        explanation,
        agent: None,
        disagreement: None,
    };
    match (control, agents.view) {
        (Some(Ok((by, control))), Some((_, agent))) => {
            let disagreement = compare(&control.explanation, &agent.explanation);
            let told = told(&by, control.explanation, Vec::new());
            Ok(Told { agent: Some(agent), disagreement, ..told })
        }
        (Some(Ok((by, control))), None) => Ok(told(&by, control.explanation, without_agent(&agents.others))),
        (control, Some((by, agent))) => {
            let cause = control.and_then(Result::err).map_or("not asked".to_owned(), |e| e.reason);
            let note = format!("no answer of the control plane, so no L7 routes and policies here: {cause}");
            let told = told(&by, agent.explanation.clone(), vec![note]);
            Ok(Told { agent: Some(agent), ..told })
        }
        (Some(Err(failure)), None) => Err(failure),
        (None, None) => Err(nobody(agents.others)),
    }
}

fn without_agent(others: &[Failure]) -> Vec<String> {
    match others.is_empty() {
        true => vec!["no agent was asked, so no kernel entries are shown".to_owned()],
        false => {
            let reasons: Vec<_> = others.iter().map(|f| f.reason.clone()).collect();
            vec![format!("no agent has the client, so no kernel entries are shown: {}", reasons.join("; "))]
        }
    }
}

fn nobody(others: Vec<Failure>) -> Failure {
    let next = others.first().map_or("name an agent with --agent", |f| f.next.as_str()).to_owned();
    let reasons: Vec<_> = others.into_iter().map(|f| f.reason).collect();
    Failure::new(reasons.join("; "), next)
}

async fn ask_control(targets: &Targets, path: &str) -> Option<Result<(Endpoint, Explained), Failure>> {
    let endpoint = targets.control.as_ref()?;
    let answer = get_json::<Explained>(endpoint, path).await;
    Some(answer.map(|told| (endpoint.clone(), told)).map_err(shorter))
}

async fn ask_agents(targets: &Targets, path: &str) -> Agents {
    let asked = targets.agents.iter().map(|(node, endpoint)| async move {
        let answer = get_json::<Explained>(endpoint, path).await;
        answer.map(|told| (endpoint.clone(), view(told, node.clone(), endpoint)))
    });
    let mut agents = Agents { view: None, others: Vec::new() };
    for answer in join_all(asked).await {
        match answer {
            Ok(found) if agents.view.is_none() => agents.view = Some(found),
            Ok(_) => {}
            Err(error) => agents.others.push(shorter(error)),
        }
    }
    agents
}

fn view(told: Explained, node: Option<String>, endpoint: &Endpoint) -> AgentView {
    AgentView {
        node: told.node.or(node).unwrap_or_else(|| endpoint.to_string()),
        kernel: told.kernel.unwrap_or_default(),
        explanation: told.explanation,
    }
}

/// "Not known" is an answer to the person, not a fault of the program: without path and status.
fn shorter(error: AskError) -> Failure {
    match error {
        AskError::Status { endpoint, status: 404, reason, .. } if !reason.is_empty() => {
            Failure::new(format!("{endpoint}: {reason}"), "culvert status lists the pods; check both names")
        }
        other => other.into(),
    }
}
