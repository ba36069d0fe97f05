//! Each program alone before the verifier.

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError, ProgramInfo},
};
use serde_json::{Value, json};

use crate::OBJECT;

/// Where this step's tables are pinned: apart from those of the agent's loader.
const PINS: &str = "/sys/fs/bpf/verify-load";

/// Names of the programs in the object. When it does not parse there is one by the name of `object`,
/// whose step then says why.
pub fn programs() -> Vec<String> {
    let Ok(object) = object(OBJECT, Logging::Off) else { return vec!["object".to_string()] };
    let mut names: Vec<String> = object.programs().map(|(name, _)| name.to_string()).collect();
    names.sort();
    names
}

/// Whether the programs log what they decide; the verifier sees that code only when they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logging {
    /// As agents run.
    Off,
    /// With `--bpf-debug`.
    On,
}

/// Parses an object and makes its tables, in a folder of their own.
///
/// # Errors
/// It is no object, or the kernel refuses a table.
pub fn object(bytes: &[u8], logging: Logging) -> Result<Ebpf> {
    std::fs::create_dir_all(PINS)?;
    let level = if logging == Logging::On { aya_log::Level::Debug as u8 } else { 0 };
    EbpfLoader::new()
        .default_map_pin_directory(PINS)
        .override_global(aya_log::LEVEL, &level, true)
        .load(bytes)
        .context("the object cannot be loaded")
}

/// Loads one program and reports the verifier's work.
///
/// # Errors
/// The object does not parse, or the verifier refuses; with the end of its log.
pub fn one(name: &str) -> Result<Value> {
    let info = loaded(name, Logging::Off)?;
    Ok(json!({
        "verified_instructions": info.verified_instruction_count(),
        "bytes_translated": info.size_translated(),
        "bytes_jitted": info.size_jitted(),
    }))
}

/// Loads one program as `--bpf-debug` asks for it; what that costs has no budget.
///
/// # Errors
/// As [`one`].
pub fn one_that_logs(name: &str) -> Result<Value> {
    let info = loaded(name, Logging::On)?;
    Ok(json!({"bytes_translated": info.size_translated()}))
}

fn loaded(name: &str, logging: Logging) -> Result<ProgramInfo> {
    let mut object = object(OBJECT, logging)?;
    let program = object.program_mut(name).context("no such program in the object")?;
    load(program).map_err(explained)
}

/// Hands a program to the kernel, whatever its kind.
///
/// # Errors
/// The kernel refuses it.
pub fn load(program: &mut Program) -> Result<ProgramInfo, ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load().and_then(|()| program.info()),
        Program::CgroupSock(program) => program.load().and_then(|()| program.info()),
        Program::SockOps(program) => program.load().and_then(|()| program.info()),
        Program::SkLookup(program) => program.load().and_then(|()| program.info()),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// An error with the last lines of the verifier's log, where the reason stands.
fn explained(error: ProgramError) -> anyhow::Error {
    let log = match &error {
        ProgramError::LoadError { verifier_log, .. } => verifier_log.to_string(),
        _ => String::new(),
    };
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(6)..].join(" | ");
    anyhow::Error::new(error).context(format!("refused: {tail}"))
}
