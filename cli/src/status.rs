//! `culvert status`: which parts run, whether they are ready, what to do if not.

mod gather;
mod judge;
mod render;

use serde::Serialize;

use crate::{
    args::Status,
    contract::{AgentConfig, Client, Found},
    endpoint::Endpoint,
    exit::{Exit, Failure},
    live::pods::targets,
    style::Style,
};

pub use judge::judge;
pub use render::render;

/// A mesh as its programs tell it.
#[derive(Debug, Clone, Serialize)]
pub struct Mesh {
    /// World, when it was found by its sockets.
    pub world: Option<String>,
    /// Control plane; none when it was not asked, because there is no endpoint of it.
    pub control: Option<Control>,
    /// Agents.
    pub agents: Vec<Agent>,
    /// Whether everything that was asked is ready, and everything is there that a world has.
    pub ready: bool,
    /// What to do, most urgent first.
    pub next: Vec<String>,
}

/// A control plane.
#[derive(Debug, Clone, Serialize)]
pub struct Control {
    /// Where it was asked.
    pub endpoint: Endpoint,
    /// Whether it serves.
    pub ready: bool,
    /// What it says of its readiness; empty when it could not be asked.
    pub says: String,
    /// Objects that it knows.
    pub objects: usize,
    /// What is wrong with them.
    pub findings: Vec<Found>,
    /// Who is connected.
    pub clients: Vec<Client>,
    /// Questions that were not answered.
    pub failures: Vec<Unanswered>,
}

/// An agent.
#[derive(Debug, Clone, Serialize)]
pub struct Agent {
    /// Where it was asked.
    pub endpoint: Endpoint,
    /// Its node, as far as known.
    pub node: String,
    /// Whether it serves.
    pub ready: bool,
    /// What it says of its readiness; empty when it could not be asked.
    pub says: String,
    /// Everything else.
    pub config: Option<AgentConfig>,
    /// Questions that were not answered.
    pub failures: Vec<Unanswered>,
}

/// A question that was not answered, and the next step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unanswered {
    /// Why.
    pub reason: String,
    /// What to do.
    pub next: String,
}

/// Asks everything and judges it.
///
/// # Errors
/// There is nobody to ask.
pub async fn ask(options: &crate::args::Mesh) -> Result<Mesh, Failure> {
    Ok(judge(gather::gather(targets(options).await?).await))
}

/// Asks everything and judges it: exit status and text.
///
/// # Errors
/// There is nobody to ask.
pub async fn run(options: &Status, as_json: bool, style: Style) -> Result<(Exit, String), Failure> {
    let mesh = ask(&options.mesh).await?;
    let exit = Exit::well_if(mesh.ready);
    let text = match as_json {
        true => serde_json::to_string_pretty(&mesh)
            .map(|text| text + "\n")
            .map_err(|error| Failure::new(format!("no JSON: {error}"), "report this"))?,
        false => render(&mesh, style),
    };
    Ok((exit, text))
}
