//! The negative control: the object that ships with one instruction spoiled must be refused, and for
//! that reason. Without it a run in which the verifier looks at nothing would pass.

use anyhow::{Context, Result, bail, ensure};
use aya::programs::ProgramError;
use object::{Object, ObjectSection, ObjectSymbol};
use serde_json::{Value, json};

use crate::{OBJECT, load};

/// The program that is spoiled.
const PROGRAM: &str = "culvert_connect4";
/// `r0 = r9` as the first instruction: no register but r1 and r10 may be read there.
const READS_NOTHING: [u8; 8] = [0xbf, 0x90, 0, 0, 0, 0, 0, 0];
/// What the verifier says to it, on every kernel.
const REASON: &str = "R9 !read_ok";

/// Passes when the verifier refuses the spoiled object for the reason that was put in.
///
/// # Errors
/// It was accepted, or refused for another reason.
pub fn refused() -> Result<Value> {
    let spoiled = spoil(OBJECT)?;
    let mut object = load::object(&spoiled, load::Logging::Off)?;
    let program = object.program_mut(PROGRAM).context("no such program in the object")?;
    match load::load(program) {
        Ok(_) => bail!("the verifier accepted a read of an uninitialised register"),
        Err(ProgramError::LoadError { verifier_log, .. }) => {
            let log = verifier_log.to_string();
            ensure!(log.contains(REASON), "refused for another reason: {log}");
            Ok(json!({"reason": REASON}))
        }
        Err(error) => Err(error).context("refused, but not by the verifier"),
    }
}

fn spoil(bytes: &[u8]) -> Result<Vec<u8>> {
    let file = object::File::parse(bytes).context("the object does not parse")?;
    let symbol =
        file.symbols().find(|symbol| symbol.name() == Ok(PROGRAM)).context("the object lacks the program")?;
    let index = symbol.section_index().context("the program lies in no section")?;
    let (start, size) = file.section_by_index(index)?.file_range().context("the section has no bytes")?;
    ensure!(symbol.address() + 8 <= size, "the program is empty");
    let at = usize::try_from(start + symbol.address())?;
    let mut spoiled = bytes.to_vec();
    let slot = spoiled.get_mut(at..at + 8).context("the section lies outside the file")?;
    slot.copy_from_slice(&READS_NOTHING);
    Ok(spoiled)
}
