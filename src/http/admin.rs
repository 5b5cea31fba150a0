//! What operators do, on the admin listener only, where nobody is asked who he is.

use std::collections::HashSet;
use std::sync::Arc;

use hyper::body::Incoming;
use schemars::JsonSchema;
use serde::Deserialize;

use super::answer::{self, Answer};
use crate::bus::{Envelope, Order, Receivers};
use crate::ids::{DeviceId, UserId};
use crate::presence::Status;
use crate::protocol::code::{CloseCode, Code};
use crate::protocol::command;
use crate::protocol::problem::Problem;
use crate::ws::Node;

/// Whose sockets are to end.
#[derive(Deserialize, JsonSchema)]
pub struct Disconnect {
    user_id: UserId,
    /// Left out, all of his devices.
    #[serde(default)]
    #[schemars(with = "Option<DeviceId>")]
    device_id: Option<String>,
}

/// Ends the sockets of a user, or of one device, on all nodes: 204 when the nodes were told,
/// whether or not he is connected. Who still has a valid token can come back.
pub async fn disconnect(node: &Arc<Node>, body: Incoming) -> Answer {
    let mut body = super::read(body, node.limits.max_frame_bytes).await?;
    let Disconnect { user_id, device_id } = command::from_json(&mut body)?;
    let device_id = device_id.map(|device| {
        device.parse().map_err(|detail: String| Problem::invalid("device_id", detail))
    });
    let device_id: Option<DeviceId> = device_id.transpose()?;
    let holding = holding(node, user_id, device_id.as_ref()).await;
    // Here in any case; the bus brings the order to this node, too.
    node.hub.end_all(user_id, device_id.as_ref(), CloseCode::Forbidden);
    let envelope = Envelope::order(user_id, Order::Disconnect(device_id));
    let told = node.bus.publish(&[(user_id, envelope.encode())]).await;
    match told.as_slice() {
        // A node that listens to nobody just now would keep its sockets.
        [Receivers::Count(nodes)] if *nodes as usize >= holding => {
            tracing::info!(user.id = %user_id, nodes, "a user was disconnected");
            answer::no_content()
        }
        _ => {
            let detail = "not all nodes that hold this user's sockets were told; try again";
            Err(Problem::new(Code::Unavailable, detail))
        }
    }
}

/// How many nodes hold sockets of the user, or of his device, as far as it is known.
async fn holding(node: &Node, user: UserId, device: Option<&DeviceId>) -> usize {
    let status = node.presence.status(&[user]).await;
    let [Status::Online(entries)] = status.as_slice() else { return 0 };
    let entries =
        entries.iter().filter(|entry| device.is_none_or(|device| entry.device == *device));
    entries.map(|entry| entry.node).collect::<HashSet<_>>().len()
}
