//! `culvert manifests`: writes every generated file of the source tree.

use std::{collections::BTreeMap, fs, io, path::Path};

use super::{chart, kustomize, page};
use crate::exit::{Exit, Failure};

/// Path below its folder, and text.
pub type Files = BTreeMap<String, String>;

/// First line of a generated file.
pub const HEADER: &str = "# Made by `cargo xtask codegen` from cli/src/manifest: edit there.\n";

/// Every generated file, by path below the source tree.
///
/// # Errors
/// A profile does not fit the settings.
pub fn files() -> Result<Files, Failure> {
    let mut files = Files::new();
    for (name, text) in kustomize::files()?.into_iter().chain(chart::files()?) {
        files.insert(format!("manifests/{name}"), text);
    }
    for (name, text) in page::files() {
        files.insert(format!("docs/{name}"), text);
    }
    Ok(files)
}

/// Writes them below a folder; what is there already and is not generated stays.
///
/// # Errors
/// A file cannot be written.
pub fn run(out: &Path) -> Result<(Exit, String), Failure> {
    let files = files()?;
    let mut said = String::new();
    for (name, text) in &files {
        let path = out.join(name);
        let write = || -> io::Result<()> {
            fs::create_dir_all(path.parent().unwrap_or(out))?;
            fs::write(&path, text)
        };
        write().map_err(|error| {
            Failure::new(
                format!("{} cannot be written: {error}", path.display()),
                "give a folder that can be written with --out",
            )
        })?;
        said.push_str(&format!("{name}\n"));
    }
    Ok((Exit::Well, said))
}
