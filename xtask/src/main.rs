//! Developer commands: `cargo xtask <verb>`.
#![forbid(unsafe_code)]

mod build;
mod ci;
mod codegen;
mod command;
mod images;
mod launch;
mod setup;
mod test;
mod tidy;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Culvert's developer commands. Each one installs or builds what it needs by itself.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Finds or installs every tool that building, tests, demo and benchmarks need.
    Setup,
    /// Builds the eBPF object and the programs.
    Build {
        /// Optimised.
        #[arg(long)]
        release: bool,
    },
    /// Runs the tests; with a filter, only those whose name contains it; `test k8s [CASE]`: only those on
    /// the Kubernetes cluster.
    Test {
        /// Part of a test's name, or `k8s`.
        filter: Option<String>,
        /// After `k8s`: part of a case's name.
        case: Option<String>,
        /// After `k8s`: the cluster stays up.
        #[arg(long)]
        keep: bool,
        /// Runs the end-to-end tests of what agents do with Istio's control plane in the place of ours.
        #[arg(long, value_name = "CONTROL", value_parser = ["istiod"], conflicts_with_all = ["case", "keep"])]
        control: Option<String>,
        /// Also runs the cases with Istio's node agents on one of the nodes. Nothing here builds a ztunnel:
        /// this is the path of one; the rest comes from Istio's Go module.
        #[arg(long, value_name = "PATH", conflicts_with = "control")]
        ztunnel: Option<std::path::PathBuf>,
    },
    /// Regenerates `mesh-net/src/api` from the protos, and manifests, chart and their tables.
    Codegen {
        /// Only compare.
        #[arg(long)]
        check: bool,
    },
    /// Shows the mesh at work on this machine; `demo --help` lists its options.
    #[command(disable_help_flag = true)]
    Demo {
        /// Passed on.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measures the mesh against its peers; `bench --help` lists its options.
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Writes OCI images of the programs, without a container engine.
    Images {
        /// Folder of the archives; `images` in cargo's target folder when not given.
        #[arg(long, value_name = "DIR")]
        out: Option<std::path::PathBuf>,
        /// Programs of the debug profile: quicker to build.
        #[arg(long)]
        debug: bool,
    },
    /// Loads, attaches and tries the kernel programs on other kernels, in QEMU.
    Verify {
        /// Kernel series, such as `6.1`.
        #[arg(long, value_delimiter = ',', default_value = verify::KERNELS)]
        kernels: Vec<String>,
        /// Writes the results as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<std::path::PathBuf>,
    },
    /// Checks crate edges, module cycles, the code map and generated files.
    Tidy,
    /// Everything that must hold before a change lands.
    Ci,
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(verb: Verb) -> anyhow::Result<ExitCode> {
    let root = command::root()?;
    match verb {
        Verb::Demo { args } => return launch::launch(&root, "culvert-demo", &args),
        Verb::Bench { args } => return launch::launch(&root, "culvert-bench", &args),
        Verb::Setup => setup::announce(&root),
        Verb::Build { release } => build::all(&root, release),
        Verb::Test { filter, case, keep, ztunnel, .. } if filter.as_deref() == Some("k8s") => {
            test::on_kubernetes(&root, case.as_deref(), keep, ztunnel.as_deref())
        }
        Verb::Test { filter, control: Some(_), .. } => test::under_istiod(&root, filter.as_deref()),
        Verb::Test { filter, ztunnel, .. } => test::run_tests(&root, filter.as_deref(), ztunnel.as_deref()),
        Verb::Codegen { check } => codegen::run(&root, check),
        Verb::Images { out, debug } => images::run_images(&root, out, debug),
        Verb::Verify { kernels, json } => verify::run(&root, &verify::Options { kernels, json }),
        Verb::Tidy => tidy::run(&root),
        Verb::Ci => ci::run_gates(&root),
    }?;
    Ok(ExitCode::SUCCESS)
}
