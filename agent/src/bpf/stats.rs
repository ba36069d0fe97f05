//! What the kernel says about our programs and tables: runs, time, size, fill. For metrics only.

use std::{collections::HashMap, io, os::fd::OwnedFd, path::Path, time::Duration};

use aya::programs::{
    ProgramInfo,
    links::{FdLink, PinnedLink},
    loaded_programs,
};

use super::{Bpf, BpfError};

/// How often one program ran, and for how long. Both stay 0 while no [`StatsSwitch`] is held.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ProgramStats {
    /// The program's name; the kernel keeps 15 bytes of it.
    pub name: String,
    /// Runs since it was loaded; those of all pods together for the inbound program.
    pub runs: u64,
    /// Time spent in those runs.
    pub time: Duration,
    /// Instructions that the verifier looked at (kernel 5.16 and later).
    pub verified_instructions: u32,
    /// Bytes of kernel memory.
    pub memory_bytes: u64,
}

/// How full a table is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MapFill {
    /// Name of the table.
    pub map: &'static str,
    /// Entries in it.
    pub entries: usize,
    /// Entries that fit.
    pub capacity: u32,
}

/// The kernel counts runs and time while this is held; it costs some nanoseconds a run.
#[derive(Debug)]
pub struct StatsSwitch {
    _fd: OwnedFd,
}

impl StatsSwitch {
    /// Turns counting on (`BPF_ENABLE_STATS`, kernel 5.8).
    ///
    /// # Errors
    /// The kernel refuses; programs then run uncounted.
    pub fn on() -> Result<Self, BpfError> {
        let fd = aya::sys::enable_stats(aya::sys::Stats::RunTime)
            .map_err(|error| BpfError::Stats { source: error.io_error })?;
        Ok(Self { _fd: fd })
    }
}

impl Bpf {
    /// Figures of every program that is attached for this node, by name.
    ///
    /// # Errors
    /// The pins or the kernel's list of programs cannot be read. A program that ends meanwhile is left out.
    pub fn program_stats(&self) -> Result<Vec<ProgramStats>, BpfError> {
        let ids: Vec<u32> = self.pinned_links()?.iter().filter_map(|path| program_of(path)).collect();
        let mut stats: HashMap<String, ProgramStats> = HashMap::new();
        for program in loaded_programs() {
            let program = program.map_err(|error| BpfError::Stats { source: io::Error::other(error) })?;
            if ids.contains(&program.id()) {
                add(&mut stats, &program);
            }
        }
        let mut stats: Vec<_> = stats.into_values().collect();
        stats.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(stats)
    }
}

fn add(stats: &mut HashMap<String, ProgramStats>, program: &ProgramInfo) {
    let name = program.name_as_str().unwrap_or_default().to_owned();
    let entry = stats.entry(name.clone()).or_insert_with(|| ProgramStats {
        name,
        runs: 0,
        time: Duration::ZERO,
        verified_instructions: 0,
        memory_bytes: 0,
    });
    entry.runs += program.run_count();
    entry.time += program.run_time();
    entry.verified_instructions = program.verified_instruction_count().unwrap_or_default();
    entry.memory_bytes += program.memory_locked().map_or(0, u64::from);
}

/// The program behind a pinned link.
fn program_of(link: &Path) -> Option<u32> {
    let link: FdLink = PinnedLink::from_pin(link).ok()?.into();
    Some(link.info().ok()?.program_id())
}
