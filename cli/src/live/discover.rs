//! Whom to ask: what options say, else the sockets of the run folder.

use std::{collections::BTreeMap, fs, io, path::Path};

use crate::{args::Mesh, endpoint::Endpoint, exit::Failure};

/// The programs of one mesh on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    /// Name of the world; none when options named the endpoints.
    pub world: Option<String>,
    /// Control plane.
    pub control: Option<Endpoint>,
    /// Agents, with the node of their socket's name.
    pub agents: Vec<(Option<String>, Endpoint)>,
}

/// Finds whom to ask.
///
/// # Errors
/// Nothing is named and nothing is found, or several meshes are there and none is chosen.
pub fn targets(options: &Mesh) -> Result<Targets, Failure> {
    if options.control.is_some() || !options.agent.is_empty() {
        let agents = options.agent.iter().map(|endpoint| (None, endpoint.clone())).collect();
        return Ok(Targets { world: None, control: options.control.clone(), agents });
    }
    let mut worlds = worlds(&options.run_dir)?;
    let names = || worlds.keys().cloned().collect::<Vec<_>>().join(", ");
    let chosen = match &options.world {
        Some(name) => name.clone(),
        None if worlds.len() > 1 => {
            let reason = format!("several meshes run on this machine: {}", names());
            return Err(Failure::new(reason, "choose one with --world NAME"));
        }
        None => worlds.keys().next().cloned().unwrap_or_default(),
    };
    if worlds.is_empty() {
        return Err(nothing(&options.run_dir));
    }
    let known = names();
    worlds.remove(&chosen).ok_or_else(|| {
        Failure::new(
            format!("there is no mesh {chosen}; there is {known}"),
            "choose one of these with --world",
        )
    })
}

/// Whether nobody was named and nothing runs on this machine.
pub fn is_empty(options: &Mesh) -> bool {
    let named = options.control.is_some() || !options.agent.is_empty() || options.world.is_some();
    !named && worlds(&options.run_dir).is_ok_and(|worlds| worlds.is_empty())
}

fn nothing(folder: &Path) -> Failure {
    let reason = format!("no mesh runs on this machine: no socket below {}", folder.display());
    let next = "start one, name its endpoints with --control and --agent, ask a cluster with --kubernetes, or explain a folder with -f FOLDER";
    Failure::new(reason, next)
}

/// Every folder of the run folder that has a socket of ours.
fn worlds(folder: &Path) -> Result<BTreeMap<String, Targets>, Failure> {
    let mut found = BTreeMap::new();
    for name in names(folder)? {
        let path = folder.join(&name);
        if !path.is_dir() {
            continue;
        }
        let targets = of_world(&path, &name)?;
        if targets.control.is_some() || !targets.agents.is_empty() {
            found.insert(name, targets);
        }
    }
    Ok(found)
}

fn of_world(folder: &Path, world: &str) -> Result<Targets, Failure> {
    let mut targets = Targets { world: Some(world.to_owned()), ..Targets::default() };
    for name in names(folder)? {
        let endpoint = Endpoint::Unix(folder.join(&name));
        let Some(stem) = name.strip_suffix(".sock") else { continue };
        match stem.strip_prefix("agent-") {
            Some(node) => targets.agents.push((Some(node.to_owned()), endpoint)),
            None if stem == "control" => targets.control = Some(endpoint),
            None => {}
        }
    }
    Ok(targets)
}

/// Names in a folder, sorted; none when it does not exist.
fn names(folder: &Path) -> Result<Vec<String>, Failure> {
    let fail = |error: io::Error| {
        let next = match error.kind() {
            io::ErrorKind::PermissionDenied => "it belongs to root: run it again with sudo",
            _ => "name the endpoints with --control and --agent",
        };
        Failure::new(format!("{} cannot be read: {error}", folder.display()), next)
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(fail)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::connect::Reach;

    fn options(run_dir: &Path, world: Option<&str>) -> Mesh {
        let world = world.map(str::to_owned);
        let run_dir = run_dir.to_owned();
        let (agent, control, namespace, reach) = (Vec::new(), None, String::new(), Reach::default());
        Mesh { agent, control, world, run_dir, kubernetes: false, namespace, reach }
    }

    fn run_dir(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    #[test]
    fn the_only_world_is_found_with_its_control_plane_and_agents() {
        let folder = run_dir(&["demo/control.sock", "demo/agent-n2.sock", "demo/agent-n1.sock", "empty/x"]);
        let found = targets(&options(folder.path(), None)).unwrap();
        assert_eq!(found.world.as_deref(), Some("demo"));
        assert!(found.control.is_some());
        let nodes: Vec<_> = found.agents.iter().filter_map(|(node, _)| node.as_deref()).collect();
        assert_eq!(nodes, ["n1", "n2"]);
    }

    #[test]
    fn several_worlds_are_listed_and_one_can_be_chosen() {
        let folder = run_dir(&["a/control.sock", "b/agent-n.sock"]);
        let unclear = targets(&options(folder.path(), None)).unwrap_err();
        assert_eq!(unclear.reason, "several meshes run on this machine: a, b");
        assert!(targets(&options(folder.path(), Some("b"))).unwrap().control.is_none());
        let unknown = targets(&options(folder.path(), Some("c"))).unwrap_err();
        assert_eq!(unknown.reason, "there is no mesh c; there is a, b");
    }

    #[test]
    fn nothing_running_says_so_and_what_to_do() {
        let missing = targets(&options(Path::new("/nonexistent/culvert"), None)).unwrap_err();
        assert!(missing.reason.contains("no socket below /nonexistent/culvert"), "{missing}");
        assert!(missing.next.contains("--control"));
    }
}
