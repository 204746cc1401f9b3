package eboot

import (
	"net/netip"
	"time"
)

// ClusterStatus is what one server says of itself and its Raft group.
type ClusterStatus struct {
	Cluster      string    `json:"cluster"`
	Server       string    `json:"server"`
	Version      string    `json:"version"`
	StartedAt    time.Time `json:"started_at"`
	Role         string    `json:"role"` // leader, follower, candidate, shutdown
	Leader       string    `json:"leader"`
	Term         uint64    `json:"term"`
	LastIndex    uint64    `json:"last_index"`
	AppliedIndex uint64    `json:"applied_index"`
	CachedIndex  uint64    `json:"cached_index"` // what the serving cache on disk holds
	Generation   uint64    `json:"generation"`
	StateDigest  Digest    `json:"state_digest"`
	Servers      []Member  `json:"servers"`
	Warnings     []string  `json:"warnings,omitempty"` // what works and should not stay so
	Readiness    Readiness `json:"readiness"`
}

// Member is one server of the Raft configuration.
type Member struct {
	ID      string `json:"id"`
	Address string `json:"address"` // of its peer port, as the configuration has it
	Voter   bool   `json:"voter"`
	Leader  bool   `json:"leader"`
}

// Health is what gossip says of a server.
type Health string

// Healths of a server.
const (
	HealthAlive Health = "alive"
	HealthLeft  Health = "left" // it said goodbye: it was stopped
	HealthGone  Health = "gone" // it does not answer, or has not been heard of
)

// MemberDetail is what the servers together know of one of them.
type MemberDetail struct {
	Member
	Role         string       `json:"role"` // leader, voter, non-voter, waiting (not a member yet)
	Health       Health       `json:"health"`
	Version      string       `json:"version,omitempty"`        // of its program
	BootAddress  []netip.Addr `json:"boot_addresses,omitempty"` // where it answers slaves
	AppliedIndex uint64       `json:"applied_index"`            // of the latest change in its state
	Lag          uint64       `json:"lag"`                      // entries of the log behind the newest state of any member
	Bundles      int          `json:"bundles"`                  // of the index, how many it holds whole
	Ready        bool         `json:"ready"`                    // it can boot every slave it should
	Drained      bool         `json:"drained"`
	Problem      string       `json:"problem,omitempty"` // in one sentence, with the way out

	CertificateExpires time.Time `json:"certificate_expires,omitzero"` // zero: it has none, or has not said
}

// Membership is the servers of a cluster as one of them sees them.
type Membership struct {
	Cluster  string `json:"cluster"`
	Leader   string `json:"leader"`
	Bundles  int    `json:"bundles"`  // in the index
	Priority string `json:"priority"` // how slaves choose: "spread", or "ordered: ID, ID, …"
	// FailureTolerance is how many more voters may fail before writes stop.
	FailureTolerance int            `json:"failure_tolerance"`
	Warnings         []string       `json:"warnings,omitempty"`
	Members          []MemberDetail `json:"members"` // members by id, then those that wait
}

// Readiness says whether a server can boot slaves at once, and if not, why.
type Readiness struct {
	Ready     bool            `json:"ready"`
	Reasons   []string        `json:"reasons,omitempty"` // why not
	Listeners []BootListener  `json:"listeners"`
	Bundles   []BundleOnDisk  `json:"bundles"`
	Damaged   []DamagedBlob   `json:"damaged,omitempty"`
	Storage   *StorageSummary `json:"storage,omitempty"`
}

// BootListener is one TCP listener for slaves of one ERTS version.
type BootListener struct {
	ERTS    string `json:"erts"`
	Address string `json:"address"`
}

// BundleOnDisk says how much of a bundle this server holds.
type BundleOnDisk struct {
	Ref      Ref    `json:"bundle"`
	ERTS     string `json:"erts"`
	Manifest Digest `json:"manifest"`
	Blobs    int    `json:"blobs"`   // distinct blobs of the bundle
	Missing  int    `json:"missing"` // of them not on this disk, or damaged
}

// DamagedBlob is a blob whose content did not match its digest. It was taken
// out of service and set aside.
type DamagedBlob struct {
	Digest Digest    `json:"digest"`
	Found  time.Time `json:"found"`
	Reason string    `json:"reason"`
}

// StorageSummary counts what the blob store holds.
type StorageSummary struct {
	Blobs       int   `json:"blobs"`
	Bytes       int64 `json:"bytes"`
	FreeBytes   int64 `json:"free_bytes"`
	Quarantined int   `json:"quarantined"`
}
