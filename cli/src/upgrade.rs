//! `culvert upgrade`: the objects of this version with the settings of the installation, changed as asked.

use crate::{
    args::lifecycle::Upgrade,
    check::preflight,
    cluster::connect::connect,
    exit::{Exit, Failure},
    install::{carry, plan, plan::Plan, report},
    manifest::values::Values,
    record,
    style::Style,
};

/// Upgrades, or only changes settings.
///
/// # Errors
/// There is no installation by `culvert install`, or as `install`.
pub async fn run(options: &Upgrade, as_json: bool, style: Style) -> Result<(Exit, String), Failure> {
    let namespace = &options.place.namespace;
    let cluster = connect(&options.place.reach).await?;
    let Some(before) = record::read(&cluster, namespace).await? else {
        let reason = format!("culvert install was not used in {namespace}");
        let next = "use culvert install; what Helm or kubectl apply -k installed is upgraded with those";
        return Err(Failure::new(reason, next));
    };
    let mut values = match options.reset_values {
        true => Values::defaults(namespace),
        false => before.values(namespace)?,
    };
    plan::choose(&mut values, &options.choice)?;
    preflight::demand(&cluster, namespace, options.carry.skip_check || options.carry.dry_run).await?;
    let plan = Plan::new(&values, &before);
    let done = carry::out(&cluster, &plan, &options.carry).await?;
    report::text("upgraded", &plan, &done, options.carry.dry_run, as_json, style)
}
