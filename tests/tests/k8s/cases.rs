//! The cases, in the order in which they run.

mod tutorial;

use crate::Case;

/// Every case by its name.
pub const ALL: &[Case] = &[(
    "a_labelled_namespace_gets_ninety_to_ten_through_a_waypoint_as_the_tutorial_says",
    tutorial::a_labelled_namespace_gets_ninety_to_ten_through_a_waypoint_as_the_tutorial_says,
)];
