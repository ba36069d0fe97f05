use super::*;

const EVENTS: [Event; 11] = [
    Event::ListenersBound,
    Event::CertificateReady,
    Event::CertificateLost,
    Event::CaptureOn,
    Event::CaptureOff,
    Event::Withdrawn,
    Event::Drained,
    Event::Failed,
    Event::Ineligible,
    Event::Eligible,
    Event::Deleted,
];

/// Answers an action as a world in which everything works would.
fn answer(action: Action) -> Option<Event> {
    match action {
        Action::BindListeners => Some(Event::ListenersBound),
        Action::RequestCertificate => Some(Event::CertificateReady),
        Action::Capture => Some(Event::CaptureOn),
        Action::Withdraw => Some(Event::Withdrawn),
        Action::Release => Some(Event::CaptureOff),
        Action::Drain => Some(Event::Drained),
        _ => None,
    }
}

fn run(enrolment: &mut Enrolment, actions: Vec<Action>) -> Vec<Action> {
    let mut done = Vec::new();
    let mut queue = std::collections::VecDeque::from(actions);
    while let Some(action) = queue.pop_front() {
        done.push(action);
        queue.extend(answer(action).map(|event| enrolment.on(event)).unwrap_or_default());
    }
    done
}

#[test]
fn a_starting_pod_is_blocked_before_anything_else() {
    let (mut pod, actions) = Enrolment::begin(Found::Starting);
    assert_eq!(actions[0], Action::Block);
    assert!(pod.is_blocked());
    let done = run(&mut pod, actions);
    assert_eq!(pod.state(), State::Active);
    assert!(!pod.is_blocked());
    assert_eq!(done.last(), Some(&Action::Announce));
}

#[test]
fn a_running_pod_is_never_blocked_and_captured_only_when_all_is_ready() {
    let (mut pod, actions) = Enrolment::begin(Found::Running);
    assert_eq!(actions, [Action::BindListeners, Action::RequestCertificate]);
    assert!(!pod.is_blocked());
    assert_eq!(pod.on(Event::CertificateReady), []);
    assert_eq!(pod.on(Event::ListenersBound), [Action::Capture]);
    assert_eq!(pod.on(Event::CaptureOn), [Action::Announce]);
}

#[test]
fn leaving_withdraws_the_announcement_before_capture_ends() {
    let (mut pod, actions) = Enrolment::begin(Found::Starting);
    run(&mut pod, actions);
    let leaving = pod.on(Event::Ineligible);
    let done = run(&mut pod, leaving);
    assert_eq!(done, [Action::Withdraw, Action::Release, Action::Drain, Action::CleanUp]);
    assert_eq!(pod.state(), State::Gone);
}

#[test]
fn a_crash_at_every_step_leads_to_active_again_and_never_unblocks_a_captured_pod() {
    for steps in 0..6 {
        let (mut pod, actions) = Enrolment::begin(Found::Starting);
        let mut queue = std::collections::VecDeque::from(actions);
        for _ in 0..steps {
            let Some(action) = queue.pop_front() else { break };
            queue.extend(answer(action).map(|event| pod.on(event)).unwrap_or_default());
        }
        // The agent is killed here; pins stay.
        let (mut next, actions) = Enrolment::begin(Found::Captured);
        assert_eq!(actions[0], Action::Block, "after {steps} steps");
        run(&mut next, actions);
        assert_eq!(next.state(), State::Active, "after {steps} steps");
    }
}

#[test]
fn deletion_ends_every_state_and_nothing_follows() {
    for first in EVENTS {
        for second in EVENTS {
            let (mut pod, _) = Enrolment::begin(Found::Starting);
            pod.on(first);
            pod.on(second);
            pod.on(Event::Deleted);
            assert_eq!(pod.state(), State::Gone);
            assert!(EVENTS.iter().all(|event| pod.on(*event).is_empty()));
        }
    }
}

#[test]
fn a_failure_is_retried_without_a_change_of_state() {
    let (mut pod, _) = Enrolment::begin(Found::Starting);
    assert_eq!(pod.on(Event::Failed), [Action::RetryLater]);
    assert_eq!(pod.state(), State::Pending);
    assert!(pod.is_blocked());
}

#[test]
fn a_lost_certificate_does_not_release_an_active_pod() {
    let (mut pod, actions) = Enrolment::begin(Found::Starting);
    run(&mut pod, actions);
    assert_eq!(pod.on(Event::CertificateLost), []);
    assert_eq!(pod.state(), State::Active);
}

#[test]
fn a_label_that_returns_while_leaving_enrols_again() {
    let (mut pod, actions) = Enrolment::begin(Found::Starting);
    run(&mut pod, actions);
    pod.on(Event::Ineligible);
    let again = pod.on(Event::Eligible);
    run(&mut pod, again);
    assert_eq!(pod.state(), State::Active);
}

#[test]
fn capture_is_never_switched_on_without_listeners_and_certificate() {
    // every sequence of four events from every beginning
    for found in [Found::Starting, Found::Running, Found::Captured] {
        for code in 0..EVENTS.len().pow(4) {
            let (mut pod, _) = Enrolment::begin(found);
            let mut seen = Vec::new();
            for place in 0..4u32 {
                let event = EVENTS[code / EVENTS.len().pow(place) % EVENTS.len()];
                seen.push(event);
                if pod.on(event).contains(&Action::Capture) {
                    assert!(seen.contains(&Event::ListenersBound) && seen.contains(&Event::CertificateReady));
                }
            }
        }
    }
}
