package api

import (
	"context"
	"io"
	"net/netip"

	"eboot"
)

// Whitelist says who may boot.
type Whitelist interface {
	// Entries returns the whole list in order of prefix.
	Entries() []eboot.WhitelistEntry
	// Allow adds or replaces entries, all or none.
	// eboot.ErrInvalid names the entry that is wrong.
	Allow(ctx context.Context, w Write, entries []eboot.WhitelistEntry) (WriteResult, error)
	// Deny removes entries, all or none; eboot.ErrNotFound names the first that is not there.
	Deny(ctx context.Context, w Write, prefixes []netip.Prefix) (WriteResult, error)
	// Check returns the entry that decides about an address.
	Check(slave netip.Addr) SlaveCheck
}

// Channels say what boots.
type Channels interface {
	Channels() []eboot.Channel
	// Channel returns eboot.ErrNotFound for a channel that nobody has set.
	Channel(name string) (eboot.Channel, error)
	// SetChannel moves a channel, sets its options, or both; eboot.ErrNotFound when the
	// bundle does not exist, eboot.ErrConflict when a server is too old for options.
	SetChannel(ctx context.Context, w Write, channel string, set ChannelSet) (WriteResult, error)
	// UndoChannel takes the latest moves of a channel back, all that one change made; again,
	// it makes them anew. eboot.ErrNotFound: the channel never moved. eboot.ErrConflict: a
	// rollout of it is under way, or a bundle it pointed to is gone.
	UndoChannel(ctx context.Context, w Write, channel string) (WriteResult, error)
}

// Bundles are what was published.
type Bundles interface {
	Bundles() []BundleDetail
	// Bundle returns one detail for each ERTS version of ref, or eboot.ErrNotFound.
	Bundle(ref eboot.Ref) ([]BundleDetail, error)
	// RemoveBundle takes ref out, for one ERTS version or (empty) for all.
	// eboot.ErrConflict when a channel points to it, a rollout that is under way is about
	// it, it is protected, or slaves run it and force is off.
	RemoveBundle(ctx context.Context, w Write, ref eboot.Ref, erts string, force bool) (WriteResult, error)
	// ProtectBundle has ref, for every ERTS version, neither removed nor collected, or
	// allows both again.
	ProtectBundle(ctx context.Context, w Write, ref eboot.Ref, protected bool) (WriteResult, error)
	// SignBundle adds signatures. eboot.ErrConflict: the bundle has another manifest than
	// the one that was signed; eboot.ErrDenied: the server does not trust a key of them.
	SignBundle(ctx context.Context, w Write, ref eboot.Ref, s BundleSignatures) (WriteResult, error)
}

// Contents are the files of bundles.
type Contents interface {
	// BootScript shows the boot script of ref for one ERTS version; empty: for the only
	// one. eboot.ErrInvalid: there are several.
	BootScript(ctx context.Context, ref eboot.Ref, erts string) (BootScript, error)
	// Manifest returns the manifest blob of ref for one ERTS version; empty: for the only
	// one. eboot.ErrInvalid: there are several.
	Manifest(ctx context.Context, ref eboot.Ref, erts string) ([]byte, error)
	// DiffBundles says what changed from one bundle to another, for one ERTS version; empty:
	// for the only one that both have. eboot.ErrInvalid: there are several.
	DiffBundles(ctx context.Context, from, to eboot.Ref, erts string) (BundleDiff, error)
	// VerifyBundle hashes every blob of ref and reports as it goes; the last report has Done set.
	VerifyBundle(ctx context.Context, ref eboot.Ref, report func(VerifyProgress) error) error
}

// Publishes take new bundles in.
type Publishes interface {
	// OpenPublish begins a publish. eboot.ErrUnavailable: too many at once.
	OpenPublish(ctx context.Context) (PublishOpened, error)
	// PutBlob takes one blob of an open publish in; several may be put at once.
	// eboot.ErrInvalid: the content does not match, or the manifest, when there is
	// one yet, does not name it. eboot.ErrTooLarge: more than any manifest may
	// name. eboot.ErrNotFound: no such publish.
	PutBlob(ctx context.Context, id string, d eboot.Digest, size int64, content io.Reader) error
	// DescribePublish answers which blobs are missing, and drops what came and is not
	// named. eboot.ErrConflict: the name is taken by other content, or this publish is
	// described already. eboot.ErrNotFound: no such publish.
	DescribePublish(ctx context.Context, id string, r PublishRequest) (PublishDescribed, error)
	// CommitPublish makes the blobs survive a crash and the bundle visible;
	// eboot.ErrConflict when blobs are missing.
	CommitPublish(ctx context.Context, id string, w Write, c PublishCommit) (PublishResult, error)
	// AbortPublish drops an open publish; an unknown one is eboot.ErrNotFound.
	AbortPublish(id string) error
}

// Cluster is the group of servers, as the server asked sees it.
type Cluster interface {
	Status() eboot.ClusterStatus
	Readiness() eboot.Readiness
	// Members returns what is known of every server, waiting ones too.
	Members(ctx context.Context) (eboot.Membership, error)
	// Fresh is asked before a read of replicated state: nil when this server knows
	// everything that was acknowledged before the call, else why it does not. It
	// waits for that as long as ctx lasts.
	Fresh(ctx context.Context) error
}

// Membership changes who belongs to the group and who leads it. A server is named
// by its id or by a prefix of it that no other has; eboot.ErrNotFound when there is
// none, eboot.ErrInvalid when there are several.
type Membership interface {
	// InitCluster founds a cluster of this server alone; eboot.ErrConflict when it,
	// or a server it can reach, knows a cluster.
	InitCluster(ctx context.Context) error
	// DrainServer has a server leave its slaves to the others, or take them again.
	// The id "self" is the server asked.
	DrainServer(ctx context.Context, w Write, id string, drained bool) (WriteResult, error)
	// TransferLeadership makes another server lead, to or (empty) any, and returns who
	// leads then. eboot.ErrConflict: to cannot lead.
	TransferLeadership(ctx context.Context, by eboot.Actor, to string) (leader string, err error)
	// RemoveServer takes a server out for good; with replace, the one that waits at
	// its address takes its place. eboot.ErrConflict: writes would not survive it.
	RemoveServer(ctx context.Context, w Write, id string, replace bool) (WriteResult, error)
}

// Snapshots carry the replicated state out and in. Blobs are not part of them.
type Snapshots interface {
	// SaveSnapshot writes the state as of now.
	SaveSnapshot(ctx context.Context, by eboot.Actor, w io.Writer) (SnapshotInfo, error)
	// RestoreSnapshot replaces the state. eboot.ErrConflict: this cluster is in
	// use and force is off. eboot.ErrInvalid, eboot.ErrDamaged: not a whole snapshot.
	RestoreSnapshot(ctx context.Context, by eboot.Actor, r io.Reader, force bool) (SnapshotInfo, error)
}

// Backend is everything the API serves.
type Backend interface {
	Whitelist
	Channels
	Rollouts
	Bundles
	Contents
	Publishes
	Fleet
	Events
	Cluster
	Membership
	Tokens
	Snapshots
}
