//! `culvert explain`: every decision about a connection, from a folder or a running mesh.

mod compare;
mod folder;
mod mesh;
mod render;

use mesh_core::explain::Explanation;
use serde::Serialize;

use crate::{
    args::Explain,
    contract::KernelEntry,
    exit::{Exit, Failure},
    style::Style,
};

pub use compare::{Disagreement, compare};
pub use render::render;

/// An explained connection.
#[derive(Debug, Clone, Serialize)]
pub struct Told {
    /// The client, as asked.
    pub source: String,
    /// What it connects to, as asked.
    pub destination: String,
    /// Who explains: the folder or the program's endpoint.
    pub by: String,
    /// What was assumed or is missing, one sentence each.
    pub notes: Vec<String>,
    /// The decisions.
    pub explanation: Explanation,
    /// The agent of the client's node.
    pub agent: Option<AgentView>,
    /// Set when that agent decides otherwise than the control plane.
    pub disagreement: Option<Disagreement>,
}

/// What the agent of the client's node says.
#[derive(Debug, Clone, Serialize)]
pub struct AgentView {
    /// Node.
    pub node: String,
    /// Kernel entries behind the decisions.
    pub kernel: Vec<KernelEntry>,
    /// Its own explanation, without L7.
    pub explanation: Explanation,
}

/// Explains a connection: exit status (not well when it is refused) and text.
///
/// # Errors
/// The folder or the programs cannot be asked, or do not know source or destination.
pub async fn run(options: &Explain, as_json: bool, style: Style) -> Result<(Exit, String), Failure> {
    let told = match &options.folder {
        Some(folder) => folder::tell(folder, options)?,
        None => mesh::tell(options).await?,
    };
    let exit = Exit::well_if(told.explanation.carried && told.disagreement.is_none());
    let text = match as_json {
        true => serde_json::to_string_pretty(&told)
            .map(|text| text + "\n")
            .map_err(|error| Failure::new(format!("no JSON: {error}"), "report this"))?,
        false => render(&told, style),
    };
    Ok((exit, text))
}
