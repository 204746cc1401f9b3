package api

import (
	"net/netip"

	"eboot"
)

// Write accompanies every change. RequestID makes repeating it safe: a second
// write with the same id changes nothing and returns what the first returned.
type Write struct {
	RequestID        string
	ExpectGeneration *uint64     // nil: whatever the generation is
	By               eboot.Actor `json:",omitzero"`
}

// WriteResult is the answer to a change.
type WriteResult struct {
	Generation uint64 `json:"generation"` // after the change
	Changed    bool   `json:"changed"`    // false: it was so already
}

// AllowRequest is the body of POST /v1/whitelist.
type AllowRequest struct {
	Entries []eboot.WhitelistEntry `json:"entries"`
}

// DenyRequest is the body of POST /v1/whitelist/deny.
type DenyRequest struct {
	Prefixes []netip.Prefix `json:"prefixes"`
}

// SlaveCheck says whether an address is whitelisted, and by which entry.
type SlaveCheck struct {
	Slave       netip.Addr            `json:"slave"`
	Whitelisted bool                  `json:"whitelisted"`
	Entry       *eboot.WhitelistEntry `json:"entry,omitempty"`
}

// ChannelSet is the body of PUT /v1/channels/{channel}: a bundle, options, or both in
// one step. An empty ERTS means every ERTS version that the bundle was published for; an
// option that is empty stays as it is.
type ChannelSet struct {
	Bundle  eboot.Ref            `json:"bundle,omitzero"`
	ERTS    string               `json:"erts,omitempty"`
	Options eboot.ChannelOptions `json:"options,omitzero"`
}

// BundleDetail is a bundle with what this server knows of it.
type BundleDetail struct {
	eboot.Bundle
	Channels []string            `json:"channels"`            // channels that point to it
	Pins     int                 `json:"pins"`                // slaves whose latest boot began with it
	PinnedBy []eboot.Pin         `json:"pinned_by,omitempty"` // the first MaxPinnedBy of them; not in the list of all bundles
	Disk     *eboot.BundleOnDisk `json:"on_disk,omitempty"`   // on the server asked
	Copies   []BundleCopy        `json:"copies,omitempty"`    // on every server; not in the list of all bundles
}

// MaxPinnedBy bounds BundleDetail.PinnedBy.
const MaxPinnedBy = 100

// ProtectedSet is the body of PUT /v1/bundles/{ref}/protected.
type ProtectedSet struct {
	Protected bool `json:"protected"`
}

// BootScript is the answer to GET /v1/bundles/{ref}/boot: a boot script as Erlang terms,
// one instruction a line.
type BootScript struct {
	Path   string `json:"path"`   // in the bundle
	Before string `json:"before"` // as it was published; empty: it is no boot script that can be read
	After  string `json:"after"`  // as slaves get it, unless their channel has the stock loader
	// Warning says why slaves get it as it was published; Before and After are equal then.
	Warning string `json:"warning,omitempty"`
}

// BundleCopy says how much of a bundle one server holds.
type BundleCopy struct {
	Server  string `json:"server"`
	Address string `json:"address"`
	Blobs   int    `json:"blobs"`             // distinct blobs of the bundle; 0: not known
	Missing int    `json:"missing"`           // of them not on its disk, or damaged
	Problem string `json:"problem,omitempty"` // why they are missing, or why nothing is known
}

// PublishOpened is the answer to POST /v1/publishes: blobs may come.
type PublishOpened struct {
	ID string `json:"id"`
	// Held has the first four bytes of the digest of every blob that the server has,
	// in no order. A blob that is not named so is missing; one that is, may
	// be. Nil: the server has too many to tell.
	Held []byte `json:"held"`
}

// PublishRequest says what an open publish is of. It travels as the first line of the
// body of PUT /v1/publishes/{id}/manifest; ManifestBytes of manifest and TimesBytes of times follow.
type PublishRequest struct {
	Name          string   `json:"name"`
	Version       string   `json:"version"`
	ERTS          []string `json:"erts"`
	BootScript    string   `json:"boot_script"`
	SysConfig     string   `json:"sys_config,omitempty"`
	ManifestBytes int      `json:"manifest_bytes"`
	TimesBytes    int      `json:"times_bytes"`

	Manifest []byte `json:"-"`
	Times    []byte `json:"-"`
}

// PublishDescribed is the answer: the blobs that neither came nor were there.
type PublishDescribed struct {
	Missing []eboot.Digest `json:"missing"`
	// Unchanged: this very content is published already under this name; commit
	// is still legal and changes nothing but what a channel points to.
	Unchanged bool `json:"unchanged"`
}

// PublishCommit is the body of POST /v1/publishes/{id}/commit.
type PublishCommit struct {
	Channel string `json:"channel,omitempty"` // empty: no channel is moved
	// MinCopies is how many servers must hold the bundle before it becomes
	// visible; 0: as many as the cluster thinks right.
	MinCopies int `json:"min_copies,omitempty"`
	// Signatures are those of the bundles, by ERTS version.
	Signatures map[string][]eboot.Signature `json:"signatures,omitempty"`
}

// PublishResult is the answer to a committed publish.
type PublishResult struct {
	WriteResult
	Bundles []eboot.Bundle `json:"bundles"` // one for each ERTS version
	// Laggards are servers without a whole copy when the bundle became visible. They
	// go on copying, and serve no slave of this bundle until they have it.
	Laggards []Laggard `json:"laggards,omitempty"`
}

// Laggard is a server that a publish did not wait for.
type Laggard struct {
	Server  string `json:"server"`
	Address string `json:"address"`
	Reason  string `json:"reason"`
}

// ClusterFounded is the answer to POST /v1/cluster/init.
type ClusterFounded struct {
	Cluster string `json:"cluster"` // its name
	Server  string `json:"server"`  // the founder
}

// DrainedSet is the body of PUT /v1/cluster/members/{server}/drained.
type DrainedSet struct {
	Drained bool `json:"drained"`
}

// LeaderTransfer is the body of POST /v1/cluster/transfer.
type LeaderTransfer struct {
	To string `json:"to"` // empty: any server that can
}

// LeaderTransferred is the answer.
type LeaderTransferred struct {
	Leader string `json:"leader"`
}

// VerifyProgress is one line of the reply to POST /v1/bundles/{ref}/verify; the
// last one has Done set.
type VerifyProgress struct {
	Checked int                 `json:"checked"` // blobs hashed so far
	Total   int                 `json:"total"`
	Done    bool                `json:"done"`
	Damaged []eboot.DamagedBlob `json:"damaged,omitempty"`
	Missing []eboot.Digest      `json:"missing,omitempty"`
}

// OK reports whether every blob was there and matched its digest.
func (p VerifyProgress) OK() bool { return p.Done && len(p.Damaged) == 0 && len(p.Missing) == 0 }

// SnapshotInfo describes a snapshot of the replicated state.
type SnapshotInfo struct {
	Stale      bool         `json:"stale,omitempty"` // of a server whose Raft does not run: newer writes may exist
	Cluster    string       `json:"cluster"`
	Index      uint64       `json:"index"`
	Generation uint64       `json:"generation"`
	Digest     eboot.Digest `json:"digest"` // of the state
	Entries    int          `json:"whitelist_entries"`
	Bundles    int          `json:"bundles"`
	Channels   int          `json:"channels"`
}
