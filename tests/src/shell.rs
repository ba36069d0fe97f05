//! Running host programs. The harness may do that; the product never does.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

/// Runs a program and returns its standard output; fails with all that it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    printed(command, &out)
}

/// What a program printed that has ended well.
fn printed(command: &Command, out: &Output) -> Result<String> {
    let (said, failed) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if !out.status.success() {
        bail!("{command:?} ended with {}: {}{}", out.status, said, failed.trim());
    }
    Ok(said.into_owned())
}

/// Runs a program with text on its standard input and returns its standard output.
pub fn fed(command: &mut Command, text: &str) -> Result<String> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().with_context(|| format!("cannot start {command:?}"))?;
    child.stdin.take().context("input is piped")?.write_all(text.as_bytes())?;
    printed(command, &child.wait_with_output()?)
}

/// `ip` with the words of `args`.
pub fn ip(args: &str) -> Result<String> {
    output(Command::new("ip").args(args.split_whitespace()))
}

/// `ip` inside a namespace.
pub fn ip_in(netns: &str, args: &str) -> Result<String> {
    ip(&format!("-n {netns} {args}"))
}

/// Writes a sysctl of a namespace; `name` uses slashes.
pub fn sysctl(netns: &str, name: &str, value: &str) -> Result<()> {
    let script = format!("echo {value} > /proc/sys/{name}");
    output(Command::new("nsenter").arg(format!("--net=/run/netns/{netns}")).args(["sh", "-c", &script]))
        .map(drop)
}
