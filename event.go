package eboot

import (
	"net/netip"
	"time"
)

// Event is something that happened: a change of the replicated state, the same on every
// server, or what one server observed of slaves.
type Event struct {
	// ID is unique: "r" and the index of the log entry for a change, else the id of the server
	// that observed it and a number.
	ID string `json:"id"`
	// Index is that of the log entry; 0: observed by a server.
	Index uint64    `json:"index,omitempty"`
	At    time.Time `json:"at"`
	Kind  EventKind `json:"kind"`
	Text  string    `json:"text"` // one sentence for people

	Generation uint64       `json:"generation,omitempty"` // after the change
	Server     string       `json:"server,omitempty"`     // the observer, or the server that it is about
	Slave      netip.Addr   `json:"slave,omitzero"`
	Prefix     netip.Prefix `json:"prefix,omitzero"`
	Channel    string       `json:"channel,omitempty"`
	Bundle     Ref          `json:"bundle,omitzero"`
	ERTS       string       `json:"erts,omitempty"`
	Rollout    string       `json:"rollout,omitempty"` // its id

	By      Actor  `json:"by,omitzero"`       // whose request it was; zero: a server's own doing
	Request string `json:"request,omitempty"` // id of the request that changed the state
}

// EventKind names what happened, NOUN.PARTICIPLE. Kinds may be added.
type EventKind string

// Changes of the replicated state.
const (
	EventSlavesAllowed     EventKind = "slaves.allowed"
	EventSlavesDenied      EventKind = "slaves.denied"
	EventBundlePublished   EventKind = "bundle.published"
	EventBundleRemoved     EventKind = "bundle.removed"
	EventBundleSigned      EventKind = "bundle.signed"
	EventBundleProtected   EventKind = "bundle.protected"
	EventBundleUnprotected EventKind = "bundle.unprotected"
	EventChannelMoved      EventKind = "channel.moved"
	EventChannelConfigured EventKind = "channel.configured"
	EventRolloutStarted    EventKind = "rollout.started"
	EventRolloutPassed     EventKind = "rollout.passed"   // a stage, which waits for approval
	EventRolloutAdvanced   EventKind = "rollout.advanced" // to the next stage
	EventRolloutPaused     EventKind = "rollout.paused"
	EventRolloutResumed    EventKind = "rollout.resumed"
	EventRolloutStopped    EventKind = "rollout.stopped"
	EventRolloutSucceeded  EventKind = "rollout.succeeded"
	EventRolloutAborted    EventKind = "rollout.aborted"
	EventRolloutRolledBack EventKind = "rollout.rolled_back"
	EventRolloutUndone     EventKind = "rollout.undone"
	EventServerDrained     EventKind = "server.drained"
	EventServerUndrained   EventKind = "server.undrained"
	EventServerRemoved     EventKind = "server.removed"
	EventVersionRaised     EventKind = "cluster.version_raised"
	EventTokenCreated      EventKind = "token.created"
	EventTokenRevoked      EventKind = "token.revoked"
	EventSnapshotRestored  EventKind = "snapshot.restored" // the state was replaced by that of a snapshot
	// What an operator had a server do that changes no replicated state itself.
	EventLeaderTransferred EventKind = "leader.transferred"
	EventSnapshotSaved     EventKind = "snapshot.saved"
)

// What a server observes of slaves, and of their network.
const (
	EventSlaveRefused   EventKind = "slave.refused"   // whitelisted, and there is no bundle for its ERTS version
	EventBootFailed     EventKind = "boot.failed"     // Boot.Failure says how
	EventBootLooping    EventKind = "boot.looping"    // the slave boots again and again
	EventSlaveRestarted EventKind = "slave.restarted" // it was told to, by a rollout
	EventRogueFound     EventKind = "rogue.found"     // something that is no server of the cluster answers slaves
)
