//! What the plugin does. The agent decides where it can be asked; without it, what it last knew does.

use std::{fs::File, path::Path, time::Duration};

use mesh_core::error::chain;
use serde_json::Value;

use super::{
    KNOWN, RECORDS,
    known::Known,
    message::{self, Answer, Question, Verb},
    report::{Failure, versions},
    request::{Attachment, PodArgs, Request, Settings},
};
use crate::{
    bpf::{Bpf, BpfConfig},
    cgroup, netns,
    redirect::Target,
    sandbox::{Record, Records},
};

/// How long the agent may take to answer. A kubelet waits some minutes for a sandbox.
const PATIENCE: Duration = Duration::from_secs(5);

/// Carries a call out; what is to be printed, if anything.
///
/// # Errors
/// As the specification wants them: what failed, why, and what to do.
pub fn run(request: &Request) -> Result<Option<Value>, Failure> {
    match request.command.as_str() {
        "VERSION" => Ok(Some(versions())),
        "ADD" => add(request).map(Some),
        "CHECK" => check(request).map(|()| None),
        "DEL" => {
            delete(request, &request.container, &request.interface);
            Ok(None)
        }
        "GC" => {
            collect(request);
            Ok(None)
        }
        // Without the agent new pods can still be started: there is nothing to be unavailable for.
        "STATUS" => Ok(None),
        other => Err(Failure::environment(format!("CNI_COMMAND {other} is unknown"))),
    }
}

fn records(settings: &Settings) -> Records {
    Records::new(settings.state_dir.join(RECORDS))
}

/// The result is that of the plugins before this one, which changes nothing that a runtime sees.
fn add(request: &Request) -> Result<Value, Failure> {
    let result = request.settings.previous.clone().ok_or_else(|| {
        Failure::configuration(
            "there is no prevResult: culvert-cni is chained behind the plugin that makes the network",
        )
    })?;
    // Not a kubelet's sandbox.
    let Some(pod) = request.pod() else { return Ok(result) };
    if request.settings.excluded.contains(&pod.namespace) {
        return Ok(result);
    }
    let Some(path) = &request.netns else {
        return Err(Failure::environment("CNI_NETNS is not set"));
    };
    let netns = File::open(path).map_err(|error| {
        Failure::environment(format!("CNI_NETNS {} cannot be opened: {error}", path.display()))
    })?;
    close(request, &pod, path, &netns)?;
    Ok(result)
}

/// Closes the pod if it belongs, or may belong, into the mesh.
fn close(request: &Request, pod: &PodArgs, path: &Path, netns: &File) -> Result<(), Failure> {
    let settings = &request.settings;
    let failed = |why: String| Failure::not_closed(format!("pod {}/{}: {why}", pod.namespace, pod.name));
    let cookie = netns::cookie(netns)
        .map_err(|error| failed(format!("its network namespace cannot be entered: {error}")))?;
    let record = Record {
        container: request.container.clone(),
        interface: request.interface.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        netns: path.to_path_buf(),
        cookie,
        addresses: request.addresses(),
    };
    // First, so that an agent that starts now knows whose namespace this is.
    records(settings).put(&record).map_err(|error| failed(chain(&error)))?;
    match message::ask(&settings.socket, &question(Verb::Add, pod, request), Some(netns), PATIENCE) {
        Ok(Answer::Untouched(_) | Answer::Captured | Answer::Done) => Ok(()),
        Ok(Answer::Failed(why)) => Err(failed(why)),
        Err(away) => {
            let known = Known::load(&settings.state_dir.join(KNOWN));
            if !known.may_be_eligible(&pod.namespace, &settings.excluded) {
                return Ok(());
            }
            block(settings, netns, &record).map_err(|error| {
                failed(format!("the agent does not answer ({away}), and without it: {error}; see that the DaemonSet's pod runs on this node"))
            })
        }
    }
}

fn question(verb: Verb, pod: &PodArgs, request: &Request) -> Question {
    Question {
        verb,
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        addresses: request.addresses(),
    }
}

fn block(settings: &Settings, netns: &File, record: &Record) -> Result<(), String> {
    let bpf = kernel(settings)?;
    let netns = netns.try_clone().map_err(|error| error.to_string())?;
    let target = Target::of(netns, &record.addresses).map_err(|error| chain(&error))?;
    // As the agent does: the entry first, then the program that reads it.
    bpf.maps.set_pod(&target.pod).map_err(|error| chain(&error))?;
    bpf.attach_pod(target.cookie, &target.netns).map_err(|error| chain(&error))
}

/// The kernel side that the agent left, or a new one when there is none since the machine started.
fn kernel(settings: &Settings) -> Result<Bpf, String> {
    let host = File::open("/proc/self/ns/net").and_then(|file| netns::cookie(&file));
    let config = BpfConfig {
        node: settings.node.clone(),
        cgroup: match &settings.cgroup {
            Some(path) => path.clone(),
            None => cgroup::v2_mount().map_err(|error| error.to_string())?,
        },
        bpffs: settings.bpffs.clone(),
        host_netns: host.map_err(|error| error.to_string())?,
        capacities: std::collections::HashMap::new(),
        debug: false,
    };
    Bpf::join(&config).map_err(|error| chain(&error))
}

fn check(request: &Request) -> Result<(), Failure> {
    let Some(pod) = request.pod() else { return Ok(()) };
    let settings = &request.settings;
    if settings.excluded.contains(&pod.namespace) {
        return Ok(());
    }
    match message::ask(&settings.socket, &question(Verb::Check, &pod, request), None, PATIENCE) {
        Ok(Answer::Failed(why)) => Err(Failure::check(why)),
        Ok(_) => Ok(()),
        Err(_) => check_alone(request, &pod),
    }
}

/// What has to be captured without anybody to ask is what would be blocked if it started now.
fn check_alone(request: &Request, pod: &PodArgs) -> Result<(), Failure> {
    let settings = &request.settings;
    if !Known::load(&settings.state_dir.join(KNOWN)).may_be_eligible(&pod.namespace, &settings.excluded) {
        return Ok(());
    }
    if records(settings).get(&request.container, &request.interface).is_none() {
        return Err(Failure::check(
            "nothing is noted of its sandbox; delete the pod, so that it is made again",
        ));
    }
    // Whether its own label opted it out nobody here knows: that it is not captured is no error.
    let pods = kernel(settings).and_then(|bpf| bpf.maps.pods().map_err(|error| chain(&error)));
    pods.map(drop).map_err(Failure::check)
}

/// Never fails: what cannot be removed now is removed by the next agent.
fn delete(request: &Request, container: &str, interface: &str) {
    let settings = &request.settings;
    let records = records(settings);
    let Some(record) = records.get(container, interface) else { return };
    let pod =
        PodArgs { namespace: record.namespace.clone(), name: record.name.clone(), uid: record.uid.clone() };
    let question = Question { addresses: record.addresses.clone(), ..question(Verb::Del, &pod, request) };
    if message::ask(&settings.socket, &question, None, PATIENCE).is_err() {
        // Only now is the namespace's entry nobody's: the agent forgets it when the pod is gone.
        forget(settings, &record).unwrap_or_else(|error| eprintln!("culvert-cni: {error}"));
    }
    records.remove(container, interface).unwrap_or_else(|error| eprintln!("culvert-cni: {}", chain(&error)));
}

fn forget(settings: &Settings, record: &Record) -> Result<(), String> {
    let bpf = kernel(settings)?;
    let pods = bpf.maps.pods().map_err(|error| chain(&error))?;
    let Some(pod) = pods.iter().find(|pod| pod.netns == record.cookie) else { return Ok(()) };
    bpf.detach_pod(pod.netns).and_then(|()| bpf.maps.remove_pod(pod)).map_err(|error| chain(&error))
}

/// Sandboxes that the runtime does not know any more.
fn collect(request: &Request) {
    let Some(valid) = &request.settings.valid else { return };
    for record in records(&request.settings).all() {
        let this = Attachment { container: record.container.clone(), interface: record.interface.clone() };
        if !valid.contains(&this) {
            delete(request, &record.container, &record.interface);
        }
    }
}
