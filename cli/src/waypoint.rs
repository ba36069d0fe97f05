//! `culvert waypoint`: waypoints that somebody asks for, as Gateways of class `culvert-waypoint`.

mod list;
mod one;

use crate::{
    args::lifecycle::{Waypoint, WaypointAction},
    exit::{Exit, Failure},
    style::Style,
};

/// API version of Gateways.
const GATEWAY: &str = "gateway.networking.k8s.io/v1";
/// Label by which namespaces, services and pods choose a waypoint.
const USE: &str = "istio.io/use-waypoint";

/// Carries an action out.
///
/// # Errors
/// The cluster cannot be reached, does not know Gateways, or refuses the change.
pub async fn run(options: &Waypoint, as_json: bool, style: Style) -> Result<(Exit, String), Failure> {
    match &options.action {
        WaypointAction::Apply(options) => one::apply(options, as_json, style).await,
        WaypointAction::List(options) => list::run(options, as_json, style).await,
        WaypointAction::Delete(options) => one::delete(options, as_json).await,
        WaypointAction::Status(options) => one::status(options, as_json, style).await,
    }
}
