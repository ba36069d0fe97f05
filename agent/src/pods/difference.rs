//! What a source says after it looked again.

use std::{collections::HashMap, sync::Arc};

use super::{PodEvent, PodInfo};

/// What has changed between `known` and `now`, the departures first; `known` is `now` after it.
pub(super) fn difference(known: &mut HashMap<Arc<str>, Arc<PodInfo>>, now: Vec<PodInfo>) -> Vec<PodEvent> {
    let mut events: Vec<PodEvent> = known
        .keys()
        .filter(|uid| !now.iter().any(|pod| pod.uid == **uid))
        .map(|uid| PodEvent::Gone(uid.clone()))
        .collect();
    known.retain(|uid, _| now.iter().any(|pod| pod.uid == *uid));
    for pod in now {
        if known.get(&pod.uid).is_none_or(|old| **old != pod) {
            let pod = Arc::new(pod);
            known.insert(pod.uid.clone(), pod.clone());
            events.push(PodEvent::Pod(pod));
        }
    }
    events
}
