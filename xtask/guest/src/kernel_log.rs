//! What the kernel complained about meanwhile.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// Words that no healthy run writes.
const COMPLAINTS: [&str; 7] =
    ["BUG:", "WARNING:", "Oops", "general protection fault", "Kernel panic", "KASAN", "UBSAN"];

/// Reads the kernel's log from its beginning.
///
/// # Errors
/// It cannot be read, or it holds a complaint.
pub fn scan() -> Result<Value> {
    let mut log = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .context("cannot open /dev/kmsg")?;
    let mut record = [0_u8; 8192];
    let (mut lines, mut complaints) = (0, Vec::new());
    loop {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(length) => {
                lines += 1;
                let text = String::from_utf8_lossy(&record[..length]).trim().to_string();
                if COMPLAINTS.iter().any(|word| text.contains(word)) {
                    complaints.push(text);
                }
            }
            // The end, or a record that was overwritten while it was read.
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error).context("cannot read /dev/kmsg"),
        }
    }
    ensure!(lines > 0, "the kernel's log is empty: it was not read");
    ensure!(complaints.is_empty(), "{}", complaints.join(" | "));
    Ok(json!({"records": lines}))
}
