//! Each component killed once, in an order of chance, while load runs.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::{
    shop::{CLIENT, SHOP, URL},
    stage::{ROLLOUT, SYSTEM, Stage},
};

/// What can be killed; an agent carries connections, which end with it.
const VICTIMS: [(&str, bool); 7] = [
    ("control", true),
    ("API server", true),
    ("kubelet", true),
    ("containerd", true),
    ("kube-proxy", true),
    ("waypoint", false),
    ("agent", false),
];

/// None of those that carry no traffic costs a request, and after each one traffic goes on by itself.
pub fn each_component_killed_at_random_under_load_leaves_traffic_whole(stage: &mut Stage) -> Result<()> {
    stage.shop()?;
    let mut victims = VICTIMS.to_vec();
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
    shuffle(&mut victims, u64::from(seed));
    for (victim, unnoticed) in victims {
        let load = stage.load(SHOP, CLIENT, URL, 8, 50, true)?;
        kill(stage, victim).with_context(|| format!("cannot kill {victim}"))?;
        let answers = load.end(stage)?;
        stage.say(&format!("{victim} killed: {:?}", answers.0));
        if unnoticed {
            answers.all_good(300).with_context(|| format!("{victim} was killed"))?;
        }
        recovered(stage)?;
    }
    Ok(())
}

fn kill(stage: &mut Stage, victim: &str) -> Result<()> {
    let program = match victim {
        "API server" => {
            stage.cluster.kill_api_server();
            return stage.cluster.start_api_server();
        }
        "control" => "culvert-control",
        "agent" => "culvert-agent",
        "waypoint" => "culvert-waypoint",
        other => other,
    };
    // On whichever node it runs.
    for node in stage.cluster.nodes.values() {
        if node.exec(&["/bin/sh", "-c", &format!("kill -9 $(pidof {program})")]).is_ok() {
            return Ok(());
        }
    }
    bail!("{program} runs on no node")
}

fn recovered(stage: &Stage) -> Result<()> {
    stage.cluster.nodes_ready(ROLLOUT)?;
    stage.cluster.rolled_out(SYSTEM, "deployment/culvert-control", ROLLOUT)?;
    stage.cluster.rolled_out(SYSTEM, "daemonset/culvert-agent", ROLLOUT)?;
    stage.waypoint(SHOP)?;
    stage.shop_answers()?;
    stage.load(SHOP, CLIENT, URL, 3, 50, true)?.end(stage)?.all_good(100)
}

/// Fisher and Yates, with a generator that is good enough for seven cards.
fn shuffle<T>(cards: &mut [T], seed: u64) {
    let mut state = seed | 1;
    for last in (1..cards.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        cards.swap(last, usize::try_from(state % (last as u64 + 1)).unwrap_or(0));
    }
}
