//! Labels and annotations that Istio's users may expect something of.

use super::Meta;
use crate::reader::Reader;

const LABELS: [&str; 4] = [
    "istio.io/use-waypoint-canary",
    "istio.io/use-waypoint-canary-namespace",
    "istio.io/waypoint-for",
    "topology.istio.io/network",
];
const ANNOTATIONS: [&str; 7] = [
    "ambient.istio.io/bypass-inbound-capture",
    "ambient.istio.io/dns-capture",
    "ambient.istio.io/waypoint-inbound-binding",
    "ambient.istio.io/xfcc-include-client-identity",
    "envoyfilter.istio.io/referenced-services",
    "istio.io/reroute-virtual-interfaces",
    "istio.io/use-waypoint-canary-weight",
];

/// Names those that an object has and that have no effect.
pub(super) fn report(metadata: &Reader<'_>, meta: &Meta) {
    for (field, known, said) in
        [("labels", &LABELS[..], &meta.labels), ("annotations", &ANNOTATIONS[..], &meta.annotations)]
    {
        for name in known.iter().filter(|name| said.contains_key(**name)) {
            let reason = format!("{name} is not supported and has no effect");
            metadata.at(field, |f| f.warn("unsupported-label", reason, "remove it"));
        }
    }
}
