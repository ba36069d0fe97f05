//! `cargo xtask verify`: the kernel programs on other kernels, in QEMU.
//!
//! Nothing is installed: QEMU and the kernels are Debian packages unpacked into the cache. The machine
//! runs a static program built on the agent's own loader (`xtask/guest`). QEMU's exit status says
//! nothing; only the guest's closing line counts, and what cannot be tried is *not verified*, never passed.

mod budget;
mod cpio;
mod guest;
mod initramfs;
mod kernel;
mod machine;
mod outcome;
mod package;
mod results;
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use outcome::{Outcome, Verified};

/// What to verify and where to write it.
#[derive(Debug)]
pub struct Options {
    /// Kernel series, such as `6.1`.
    pub kernels: Vec<String>,
    /// File for the results as JSON.
    pub json: Option<PathBuf>,
}

/// Kernels that the supported matrix names; others may be asked for.
pub const KERNELS: &str = "6.1,6.12";

/// Verifies each kernel, one after another, and prints the table.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    let guest = guest::build(root)?;
    let budget = budget::read(root)?;
    let verified: Vec<Verified> =
        options.kernels.iter().map(|series| one(root, series, &guest, &budget)).collect();
    println!("{}", table::render(&verified, &budget));
    if let Some(path) = &options.json {
        fs::write(path, format!("{:#}\n", table::json(&verified)))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let held = verified.iter().filter(|kernel| kernel.outcome == Outcome::Passed).count();
    if verified.is_empty() || held < verified.len() {
        bail!("verify: {held} of {} kernels passed", verified.len());
    }
    Ok(())
}

/// One kernel. An error on the way to its first result line means that nothing was verified.
fn one(root: &Path, series: &str, guest: &Path, budget: &budget::Budget) -> Verified {
    println!("verify: kernel {series}");
    match boot(root, series, guest) {
        Ok((kernel, console)) => {
            let results = results::parse(&console.text);
            let verdict = results::judge(&results, series, budget, &console);
            if verdict != Outcome::Passed {
                println!("verify: console of {series}:\n{}", console.tail());
            }
            Verified {
                series: series.to_string(),
                package: kernel.package,
                outcome: verdict,
                seconds: console.seconds,
                results,
            }
        }
        Err(error) => Verified::not_verified(series, &error),
    }
}

fn boot(root: &Path, series: &str, guest: &Path) -> Result<(kernel::Kernel, machine::Console)> {
    let kernel = kernel::find(series)?;
    let qemu = machine::find()?;
    let image = initramfs::write(root, &kernel, guest)?;
    let console = machine::run(&qemu, &kernel.image, &image);
    fs::remove_file(&image).ok();
    Ok((kernel, console?))
}
