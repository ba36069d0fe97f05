//! `culvert install`: checks, applies what the manifests hold, waits, and says what to do next.

pub mod carry;
pub mod plan;
pub mod report;

use crate::{
    args::lifecycle::Install,
    check::preflight,
    cluster::connect::connect,
    exit::{Exit, Failure},
    manifest::{
        profile::{PLATFORMS, PROFILES, find},
        values::Values,
    },
    record::{self, Record},
    style::Style,
};
use plan::Plan;

/// Installs.
///
/// # Errors
/// The cluster cannot be reached, is not fit, has Culvert already, or refuses an object.
pub async fn run(options: &Install, as_json: bool, style: Style) -> Result<(Exit, String), Failure> {
    let namespace = &options.place.namespace;
    let values = values(options)?;
    let cluster = connect(&options.place.reach).await?;
    if let Some(there) = record::read(&cluster, namespace).await?
        && there.complete
        && !options.carry.dry_run
    {
        let reason = format!("Culvert {} is installed in {namespace} already", there.version);
        return Err(Failure::new(reason, "change it with culvert upgrade"));
    }
    preflight::demand(&cluster, namespace, options.carry.skip_check || options.carry.dry_run).await?;
    let plan = Plan::new(&values, &Record::default());
    let done = carry::out(&cluster, &plan, &options.carry).await?;
    report::text("installed", &plan, &done, options.carry.dry_run, as_json, style)
}

/// Settings: defaults, then profile, platform, file, and single ones.
///
/// # Errors
/// One of them is unknown or of another kind.
fn values(options: &Install) -> Result<Values, Failure> {
    let mut values = Values::defaults(&options.place.namespace);
    find(PROFILES, &options.profile)?.apply(&mut values)?;
    if let Some(platform) = &options.platform {
        find(PLATFORMS, platform)?.apply(&mut values)?;
    }
    plan::choose(&mut values, &options.choice)?;
    Ok(values)
}
