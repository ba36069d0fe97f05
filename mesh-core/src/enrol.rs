//! How a pod enters and leaves the mesh: a state machine, events in, actions out.
//!
//! Two ways in. A pod that *starts* eligible, or whose capture survived an earlier agent, is blocked
//! before anything else: it never sends a byte in plaintext. A pod that was already *running* when
//! its label arrived keeps its traffic until listeners and certificate are ready and is then
//! captured at once: no connection is refused at label time. Capture outlives the agent, so after a
//! crash at any step the next agent starts again from [`Found::Captured`] or [`Found::Running`] and
//! every action is idempotent.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

/// Where a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Seen; capture, if any, refuses everything; listeners are being bound.
    Pending,
    /// Listeners are bound; the certificate is awaited.
    Listening,
    /// Listeners and certificate are ready; capture is being switched on.
    Capturing,
    /// Traffic flows through the agent.
    Active,
    /// Leaving the mesh alive: the announcement is being withdrawn, then capture ends.
    Withdrawing,
    /// No longer captured; flows that are open go on until they end.
    Draining,
    /// Nothing of ours is left.
    Gone,
}

impl State {
    /// Whether the pod is on its way into the mesh and not there yet.
    pub fn is_inward(self) -> bool {
        matches!(self, Self::Pending | Self::Listening | Self::Capturing)
    }
}

/// How a pod was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// It starts now, eligible from the beginning.
    Starting,
    /// It was running before it became eligible.
    Running,
    /// Its capture is pinned from an earlier agent.
    Captured,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// All listeners of the pod accept.
    ListenersBound,
    /// The pod's certificate is there and valid.
    CertificateReady,
    /// The certificate expired and no new one could be had.
    CertificateLost,
    /// The kernel sends the pod's traffic to the agent.
    CaptureOn,
    /// The kernel no longer captures the pod's traffic.
    CaptureOff,
    /// The announcement (`ambient.istio.io/redirection`) is withdrawn.
    Withdrawn,
    /// The last open flow ended, or the drain deadline passed.
    Drained,
    /// The action under way failed; it is repeated.
    Failed,
    /// The pod's labels no longer ask for the mesh.
    Ineligible,
    /// The pod's labels ask for the mesh again.
    Eligible,
    /// The pod and its network are gone.
    Deleted,
}

/// What to do. Actions are idempotent and are carried out in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Capture in the blocked state: new connections are refused, or wait once the listeners are bound.
    Block,
    /// Bind 15001, 15006 and 15008 in the pod and set up its routing.
    BindListeners,
    /// Obtain the certificate and keep it fresh.
    RequestCertificate,
    /// Switch capture to active.
    Capture,
    /// Write the annotation that makes the control plane announce HBONE.
    Announce,
    /// Remove that annotation.
    Withdraw,
    /// End capture of new connections in both directions; open flows go on.
    Release,
    /// Wait for open flows up to the drain deadline.
    Drain,
    /// Close open flows now.
    CloseFlows,
    /// Close listeners, undo routing, remove kernel entries, forget the certificate.
    CleanUp,
    /// Try the current step again after a back-off.
    RetryLater,
}

/// One pod's enrolment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    state: State,
    found: Found,
    listening: bool,
    certified: bool,
}

impl Enrolment {
    /// Begins with a pod that is eligible.
    pub fn begin(found: Found) -> (Self, Vec<Action>) {
        let begun = Self { state: State::Pending, found, listening: false, certified: false };
        let prepare = [Action::BindListeners, Action::RequestCertificate];
        let actions = match found {
            Found::Running => prepare.to_vec(),
            Found::Starting | Found::Captured => [Action::Block].into_iter().chain(prepare).collect(),
        };
        (begun, actions)
    }

    /// Cleans up after a pod whose capture is pinned but which is not eligible any more.
    pub fn abandon() -> (Self, Vec<Action>) {
        let left =
            Self { state: State::Withdrawing, found: Found::Captured, listening: false, certified: false };
        (left, vec![Action::Withdraw])
    }

    /// Where the pod is.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether new connections of the pod are refused at present.
    pub fn is_blocked(&self) -> bool {
        self.found != Found::Running && self.state.is_inward()
    }

    /// What is awaited, for readiness and `/debug/pods`.
    pub fn awaits(&self) -> &'static str {
        match self.state {
            State::Pending => "listeners",
            State::Listening => "certificate",
            State::Capturing => "capture",
            State::Active | State::Gone => "nothing",
            State::Withdrawing => "withdrawal of the announcement",
            State::Draining => "the end of open flows",
        }
    }

    /// Takes an event; returns what to do. Events that make no sense in a state are late answers
    /// and change nothing.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        match (self.state, event) {
            (State::Gone, _) => Vec::new(),
            (_, Event::Deleted) => self.to(State::Gone, &[Action::CloseFlows, Action::CleanUp]),
            (_, Event::Failed) => vec![Action::RetryLater],
            (State::Pending | State::Listening | State::Capturing | State::Active, event) => {
                self.inward(event)
            }
            (_, event) => self.outward(event),
        }
    }

    fn inward(&mut self, event: Event) -> Vec<Action> {
        match (self.state, event) {
            (_, Event::ListenersBound) => {
                self.listening = true;
                self.advance()
            }
            (_, Event::CertificateReady) => {
                self.certified = true;
                self.advance()
            }
            // An active pod stays captured: its flows are refused one by one until a certificate is back.
            (State::Pending | State::Listening, Event::CertificateLost) => {
                self.certified = false;
                Vec::new()
            }
            (State::Capturing, Event::CaptureOn) => self.to(State::Active, &[Action::Announce]),
            (State::Active, Event::Ineligible) => self.to(State::Withdrawing, &[Action::Withdraw]),
            (_, Event::Ineligible) => self.to(State::Withdrawing, &[Action::Withdraw]),
            _ => Vec::new(),
        }
    }

    fn advance(&mut self) -> Vec<Action> {
        match (self.state, self.listening, self.certified) {
            (State::Pending | State::Listening, true, true) => self.to(State::Capturing, &[Action::Capture]),
            (State::Pending, true, false) => self.to(State::Listening, &[]),
            _ => Vec::new(),
        }
    }

    /// The announcement goes first, so that peers stop opening tunnels; then capture; then the flows.
    fn outward(&mut self, event: Event) -> Vec<Action> {
        match (self.state, event) {
            (State::Withdrawing, Event::Withdrawn) => self.to(State::Draining, &[Action::Release]),
            (State::Draining, Event::CaptureOff) => vec![Action::Drain],
            (State::Draining, Event::Drained) => self.to(State::Gone, &[Action::CleanUp]),
            (State::Withdrawing | State::Draining, Event::Eligible) => {
                let (again, actions) = Self::begin(Found::Running);
                *self = again;
                actions
            }
            _ => Vec::new(),
        }
    }

    fn to(&mut self, state: State, actions: &[Action]) -> Vec<Action> {
        self.state = state;
        actions.to_vec()
    }
}
