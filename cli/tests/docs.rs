//! docs/cli.md shows what the binary says: a block after `<!-- help: COMMAND -->` is the listing of
//! its options, one after `<!-- run: ARGUMENTS -->` its output. `CULVERT_BLESS=1` writes them anew.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, process::Command};

/// Lines of an example's output that the page shows.
const SHOWN: usize = 24;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn culvert(args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
    command.args(args).current_dir(root()).env_clear();
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

fn tutorial() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in [
        "cli/tests/cluster/cluster.yaml",
        "examples/nginx-canary/app.yaml",
        "examples/nginx-canary/routing.yaml",
    ] {
        fs::copy(root().join(file), folder.path().join(Path::new(file).file_name().unwrap())).unwrap();
    }
    folder
}

fn shown(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    let more = lines.len().saturating_sub(SHOWN);
    let mut shown = lines[..lines.len().min(SHOWN)].join("\n");
    if more > 0 {
        shown.push_str(&format!("\n… {} more lines, then:\n{}", more - 1, lines.last().unwrap()));
    }
    shown
}

/// The block below a marker; none when the marker asks for nothing.
fn block(marker: &str) -> Option<String> {
    let inner = marker.strip_prefix("<!-- ")?.strip_suffix(" -->")?;
    if let Some(command) = inner.strip_prefix("help:") {
        let args: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
        return Some(format!("```\n$ culvert {}\n{}\n```", args.join(" "), culvert(&args).trim_end()))
            .map(|text| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"));
    }
    let line = inner.strip_prefix("run: ")?;
    let folder = tutorial();
    let path = folder.path().to_str().unwrap();
    let args: Vec<_> = line.split(' ').map(|arg| if arg == "TUTORIAL" { path } else { arg }).collect();
    let text = culvert(&args).replace(path, "TUTORIAL");
    Some(format!("```\n$ culvert {line}\n{}\n```", shown(&text)))
}

#[test]
fn the_command_line_page_shows_what_the_binary_says() {
    let page = root().join("docs/cli.md");
    let old = fs::read_to_string(&page).unwrap();
    let (mut new, mut inside) = (String::new(), false);
    for line in old.lines() {
        inside &= line != "<!-- end -->";
        if !inside {
            new.push_str(&format!("{line}\n"));
        }
        if let Some(text) = block(line) {
            new.push_str(&format!("{text}\n"));
            inside = true;
        }
    }
    if std::env::var_os("CULVERT_BLESS").is_some() {
        fs::write(&page, new).unwrap();
    } else {
        assert!(
            old == new,
            "docs/cli.md is stale: CULVERT_BLESS=1 cargo test -p cli --test docs writes it anew"
        );
    }
}
