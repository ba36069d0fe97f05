//! `cargo xtask test k8s [CASE] [--keep]`: a cluster of the real programs on two nodes with Culvert
//! installed, and cases that run on it one after another. Prints what libtest prints, so that
//! `cargo xtask test` counts these cases too. Cases beside Istio's own parts have a cluster of their own
//! and need `--ztunnel`.

mod cases;
mod ends;
mod istio;
mod istiod;
mod load;
mod report;
mod shop;
mod stage;

use std::process::ExitCode;

use harness::{cluster::programs, guard, require};

use report::Report;
use stage::Stage;

/// A case: its name, and what it does.
type Case = (&'static str, fn(&mut Stage) -> anyhow::Result<()>);

/// Cases that share a cluster.
struct Scene {
    set: fn() -> anyhow::Result<Stage>,
    cases: &'static [Case],
    /// Why it cannot be set here.
    excuse: fn() -> Option<&'static str>,
}

const SCENES: [Scene; 3] = [
    Scene { set: Stage::set, cases: cases::ALL, excuse: || None },
    Scene { set: Stage::set_beside_ztunnel, cases: cases::BESIDE_ZTUNNEL, excuse: no_ztunnel },
    Scene { set: Stage::set_istio, cases: cases::FROM_ISTIO, excuse: no_ztunnel },
];

fn no_ztunnel() -> Option<&'static str> {
    programs::istio_images().is_none().then_some("no ztunnel is given")
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| words.iter().any(|word| word == flag);
    let filter = words.iter().find(|word| !word.starts_with('-')).cloned().unwrap_or_default();
    let chosen = |scene: &Scene| -> Vec<&Case> {
        scene.cases.iter().filter(|(name, _)| name.contains(&filter)).collect()
    };
    let all: Vec<&Case> = SCENES.iter().flat_map(chosen).collect();
    if has("--list") {
        all.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if all.is_empty() {
        return Report::start(0).end();
    }
    if !has(guard::SUPERVISED) {
        if !require::cluster("k8s") {
            let mut report = Report::start(all.len());
            all.iter().for_each(|(name, _)| report.skipped(name, require::cluster_excuse()));
            return report.end();
        }
        return guard::supervise().unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        });
    }
    let mut report = Report::start(all.len());
    for scene in &SCENES {
        play(scene, &chosen(scene), has("--keep"), &mut report);
    }
    report.end()
}

/// Sets a scene and runs its chosen cases, when there are any.
fn play(scene: &Scene, chosen: &[&Case], keep: bool, report: &mut Report) {
    if chosen.is_empty() {
        return;
    }
    if let Some(why) = (scene.excuse)() {
        return chosen.iter().for_each(|(name, _)| report.skipped(name, why));
    }
    let mut stage = match (scene.set)() {
        Ok(stage) => stage,
        Err(error) => {
            let why = format!("no cluster: {error:#}");
            return chosen.iter().for_each(|(name, _)| report.failed(name, &why));
        }
    };
    for (name, case) in chosen {
        stage.say(&format!("case {name}"));
        let outcome = case(&mut stage);
        report.take(name, outcome, &stage);
        stage.clear();
    }
    if keep {
        stage.keep();
    }
}
