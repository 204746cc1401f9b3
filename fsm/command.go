package fsm

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"eboot"
)

// Header accompanies every command.
type Header struct {
	// RequestID makes repeating the command safe: 1 to 128 printable ASCII
	// characters without spaces, unique to this change. The answer to the latest
	// 4096 of them is remembered and given again.
	RequestID string
	// At is the proposer's time in milliseconds since 1970, the only time there is
	// in the replicated state.
	At int64
	// ExpectGeneration, unless nil, makes the command fail with ErrConflict when
	// the generation is another one.
	ExpectGeneration *uint64
	// By is who asked for the change; zero: a server, by itself. It is what the events of the
	// command tell, and nothing is decided by it. A command with it needs VersionActors.
	By eboot.Actor
}

// For returns h as a cluster at this version (State.Version) can be told it: one below
// VersionActors is not told who asked, as some server of it could not read that.
func (h Header) For(version int) Header {
	if version < VersionActors {
		h.By = eboot.Actor{}
	}
	return h
}

// Limits of the replicated state. A command that would pass one is ErrTooLarge.
const (
	MaxWhitelistEntries = 4 << 20
	MaxBundles          = 16 << 10
	MaxChannels         = 1 << 10
	maxHolders          = 64
)

// latestTime is the last millisecond that a time in JSON can hold (year 9999).
const latestTime = 253_402_300_799_999

func (h Header) header() Header { return h }

func (h *Header) set(v Header) { *h = v }

func (h Header) time() time.Time { return time.UnixMilli(h.At).UTC() }

func (h Header) check() error {
	if len(h.RequestID) == 0 || len(h.RequestID) > 128 {
		return fmt.Errorf("request id: want 1 to 128 characters: %w", eboot.ErrInvalid)
	}
	for i := range len(h.RequestID) {
		if c := h.RequestID[i]; c <= ' ' || c > '~' {
			return fmt.Errorf("request id %q: want printable ASCII without spaces: %w", h.RequestID, eboot.ErrInvalid)
		}
	}
	if h.At < 0 || h.At > latestTime {
		return fmt.Errorf("time %d ms: want a time between 1970 and 9999: %w", h.At, eboot.ErrInvalid)
	}
	return h.By.Check()
}

// check asks of a command what needs no state.
func check(c Command) error {
	h := c.header()
	if err := h.check(); err != nil {
		return err
	}
	if k := c.kind(); k.own() && !h.By.IsZero() {
		return fmt.Errorf("%s: comes from servers themselves and not from %s: %w", k, h.By, eboot.ErrInvalid)
	}
	return c.check()
}

// Command is one change of the state: one of the types of this package that have a
// Header.
//
// check asks what needs no state, and is asked by Encode and again by Apply; apply
// builds the change into a successor and may leave it half built when it fails.
type Command interface {
	// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
	Encode() ([]byte, error)

	header() Header
	kind() kind
	check() error
	apply(*transition) error
}

// Init gives a new cluster its identity. The first one counts; any later one
// changes nothing and is no error, so that every server may propose one.
type Init struct {
	Header    `json:"-"`
	ClusterID string `json:"cluster_id"`
	Name      string `json:"name,omitempty"`
}

func (Init) kind() kind { return kindInit }

func (c Init) check() error {
	if err := eboot.CheckName("cluster id", c.ClusterID); err != nil {
		return err
	}
	if c.Name == "" {
		return nil
	}
	return eboot.CheckName("cluster name", c.Name)
}

// AllowSlaves adds entries, or replaces those with the same prefix: all of them
// or, when one is wrong, none. A prefix given twice with different content is ErrInvalid.
type AllowSlaves struct {
	Header  `json:"-"`
	Entries []eboot.WhitelistEntry `json:"entries"`
}

func (AllowSlaves) kind() kind { return kindAllowSlaves }

func (c AllowSlaves) check() error {
	if len(c.Entries) == 0 {
		return fmt.Errorf("allow: no entries given: %w", eboot.ErrInvalid)
	}
	for i := range c.Entries {
		e := &c.Entries[i]
		if err := eboot.CheckPrefix(e.Prefix); err != nil {
			return err
		}
		if err := eboot.CheckName("channel", e.Channel); err != nil {
			return fmt.Errorf("prefix %s: %w", e.Prefix, err)
		}
		if err := eboot.CheckLabels(e.Labels); err != nil {
			return fmt.Errorf("prefix %s: %w", e.Prefix, err)
		}
	}
	return nil
}

// DenySlaves removes entries: all of them or, when one is not in the list
// (ErrNotFound), none. A prefix given twice counts once.
type DenySlaves struct {
	Header   `json:"-"`
	Prefixes []netip.Prefix `json:"prefixes"`
}

func (DenySlaves) kind() kind { return kindDenySlaves }

func (c DenySlaves) check() error {
	if len(c.Prefixes) == 0 {
		return fmt.Errorf("deny: no prefixes given: %w", eboot.ErrInvalid)
	}
	for _, p := range c.Prefixes {
		if err := eboot.CheckPrefix(p); err != nil {
			return err
		}
	}
	return nil
}

// AddBundle enters a bundle into the index and, when Channel is not empty, points
// that channel to it in the same step. Its PublishedAt is the header's time, whatever
// Bundle says. A bundle that is there already with the same manifest stays as it was
// first published, and Holders are added to it, but for servers that were removed, and Signatures
// as SignBundle adds them.
// Whether it is Protected is not the bundle's to say: see ProtectBundle. ErrConflict: it is
// there with another manifest, boot script or sys.config, or a rollout of Channel is under way.
type AddBundle struct {
	Header  `json:"-"`
	Bundle  eboot.Bundle `json:"bundle"`
	Channel string       `json:"channel,omitempty"`
}

func (AddBundle) kind() kind { return kindAddBundle }

func (c AddBundle) check() error {
	if err := c.Bundle.Check(); err != nil {
		return err
	}
	if c.Bundle.Files < 0 || c.Bundle.Bytes < 0 {
		return fmt.Errorf("bundle %s: negative size: %w", c.Bundle.Ref(), eboot.ErrInvalid)
	}
	if len(c.Bundle.Holders) > maxHolders {
		return fmt.Errorf("bundle %s: %d holders, at most %d: %w", c.Bundle.Ref(), len(c.Bundle.Holders), maxHolders, eboot.ErrTooLarge)
	}
	for _, h := range c.Bundle.Holders {
		if err := eboot.CheckName("holder", h); err != nil {
			return err
		}
	}
	if c.Channel == "" {
		return nil
	}
	return eboot.CheckName("channel", c.Channel)
}

// withoutTime blanks what Apply takes from the header, so that a repeated request
// has the same content as the first.
func (c AddBundle) withoutTime() AddBundle {
	c.Bundle.PublishedAt, c.Bundle.Protected = time.Time{}, false
	c.Bundle.Holders = sortedHolders(c.Bundle.Holders)
	if len(c.Bundle.Signatures) > 0 {
		c.Bundle.Signatures = sortedSignatures(c.Bundle.Signatures)
	}
	return c
}

func sortedHolders(holders []string) []string {
	sorted := append(make([]string, 0, len(holders)), holders...)
	slices.Sort(sorted)
	return slices.Compact(sorted)
}

// RemoveBundle takes a bundle out of the index: for one ERTS version, or for all
// of them when ERTS is empty. ErrNotFound: there is none; ErrConflict: a channel points to
// it, a rollout that is under way needs it, or it is protected.
type RemoveBundle struct {
	Header `json:"-"`
	Ref    eboot.Ref `json:"bundle"`
	ERTS   string    `json:"erts,omitempty"`
}

func (RemoveBundle) kind() kind { return kindRemoveBundle }

func (c RemoveBundle) check() error { return checkTarget(c.Ref, c.ERTS) }

// SetChannel points a channel to a bundle: for one ERTS version, or for every one
// that Ref was published for when ERTS is empty. Other ERTS versions of the channel
// stay. The channel is made when it does not exist. ErrNotFound: there is no such bundle;
// ErrConflict: a rollout of the channel is under way.
type SetChannel struct {
	Header  `json:"-"`
	Channel string    `json:"channel"`
	Ref     eboot.Ref `json:"bundle"`
	ERTS    string    `json:"erts,omitempty"`
}

func (SetChannel) kind() kind { return kindSetChannel }

func (c SetChannel) check() error {
	if err := eboot.CheckName("channel", c.Channel); err != nil {
		return err
	}
	return checkTarget(c.Ref, c.ERTS)
}

func checkTarget(ref eboot.Ref, erts string) error {
	if err := ref.Check(); err != nil {
		return err
	}
	if erts == "" {
		return nil
	}
	return eboot.CheckERTS(erts)
}
