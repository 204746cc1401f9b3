package peerrpc

import (
	"context"
	"io"
	"net/netip"
	"time"

	"eboot"
	"eboot/api"
)

// ServerInfo is what a server says of itself.
type ServerInfo struct {
	ID      string `json:"id"`
	Cluster string `json:"cluster"` // UUID by its state; empty: it knows none
	Version string `json:"version"`
	Address string `json:"address,omitempty"` // of its peer port, as others reach it; empty: it is of an older version
	// StateVersion is the highest version of replicated commands that it can read; 0: likewise.
	StateVersion int `json:"state_version,omitempty"`
	Configuration
	LastIndex     uint64               `json:"last_index"`
	AppliedIndex  uint64               `json:"applied_index"`
	StateIndex    uint64               `json:"state_index"` // of the latest command in its state
	Complete      bool                 `json:"complete"`    // every bundle that a channel names is whole on its disk
	Ready         bool                 `json:"ready"`
	Serving       bool                 `json:"serving"`           // it can boot every slave it should, with or without a leader
	Reasons       []string             `json:"reasons,omitempty"` // why it is not ready
	BootAddresses []netip.Addr         `json:"boot_addresses,omitempty"`
	Bundles       []eboot.BundleOnDisk `json:"bundles"` // every bundle of the index

	CertificateExpires time.Time `json:"certificate_expires,omitzero"` // zero: it has none
}

// Configuration is the group as a server knows it from Raft.
type Configuration struct {
	Servers  []eboot.Member `json:"servers"`
	Leader   string         `json:"leader"`
	Founding string         `json:"founding,omitempty"` // what it offers to found: see cluster.Knowledge
	Waiting  []Candidate    `json:"waiting,omitempty"`  // of a leader: servers that are not members, and why
	Learning []Candidate    `json:"learning,omitempty"` // of a leader: members that do not vote yet, and why
}

// Candidate is a server that has not got what it waits for.
type Candidate struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	Reason  string `json:"reason"`            // one sentence, with the way out where there is one
	Passing bool   `json:"passing,omitempty"` // it may be over by itself in a moment
}

// Holds counts the bundles that the server holds whole.
func (i ServerInfo) Holds() int {
	whole := 0
	for _, b := range i.Bundles {
		if b.Missing == 0 {
			whole++
		}
	}
	return whole
}

// CopyRequest asks a server to hold a bundle that is not visible yet.
type CopyRequest struct {
	From    string         `json:"from"` // id of the server that has it all
	Bundles []eboot.Bundle `json:"bundles"`
	Wait    time.Duration  `json:"wait"` // how long the publish may wait for others before it is visible
}

// RestartRequest names one boot of a slave.
type RestartRequest struct {
	Slave  netip.Addr `json:"slave"`
	Number uint64     `json:"number"` // eboot.CuredBoot.Number
}

// Answerer answers what other servers ask. Every error is one of the root package's.
type Answerer interface {
	Info() ServerInfo
	// TakePins merges the pins of another server, and Pins returns all.
	TakePins(pins []eboot.Pin)
	Pins() []eboot.Pin
	// TakePlans merges what another server learned. No plan is checked yet.
	TakePlans(plans []eboot.LearnedPlan)
	// TakeBoots and TakeEvents merge what another server observed. Nothing is checked yet.
	TakeBoots(boots []eboot.Boot)
	TakeEvents(events []eboot.Event)
	// RestartSlave tells a slave to boot again, over the session that it keeps open with this
	// server; eboot.ErrUnavailable when there is none.
	RestartSlave(r RestartRequest) error
	// CopyBundle returns when every blob of the bundles is durable on this disk.
	CopyBundle(ctx context.Context, r CopyRequest) error
}

// Leader does what only the leader can; eboot.ErrNoLeader when this server is none.
type Leader interface {
	// ApplyEntry proposes an encoded command and returns the encoded result.
	ApplyEntry(ctx context.Context, entry []byte) ([]byte, error)
	// ReadIndex returns the log index that a server must have applied to know
	// everything that was acknowledged before the call.
	ReadIndex(ctx context.Context) (uint64, error)
	TransferHere(ctx context.Context, to string) error
	RemoveHere(ctx context.Context, w api.Write, id string, replace bool) (api.WriteResult, error)
	RestoreHere(ctx context.Context, by eboot.Actor, r io.Reader, force bool) (api.SnapshotInfo, error)
}
