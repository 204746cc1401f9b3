package fsm

import (
	"fmt"
	"slices"

	"eboot"
)

// Limits of what is known of servers.
const (
	maxDrained = 1024
	maxRemoved = 1024
	maxVersion = 1 << 20
)

// Version is the highest cluster version that this program knows: the value that
// it may propose with RaiseVersion.
const Version = coverageVersion

const (
	firstVersion   = 1 // of a cluster that was never raised
	optionsVersion = 2 // channels have options
	rolloutVersion = 3 // rollouts, events, protected bundles, live channels, undo
	// securityVersion is that of signatures of bundles.
	securityVersion = 4
	// operatorsVersion is that of who asked for a change, in commands and events, of tokens,
	// and of more events.
	operatorsVersion = 5
	// coverageVersion is that of rollouts which move the ERTS versions that their target was
	// published for when they began, and no others; and of tokens that are revoked by name.
	coverageVersion = 6
)

// VersionActors is the cluster version from which on commands may say who asked: see
// Header.For.
const VersionActors = operatorsVersion

// HoldBundle says that a server holds every blob of the bundles with these
// manifests: it is added to their Holders. Manifests that no bundle has are left
// out, as a bundle may be removed at any time. ErrConflict: the server was removed;
// ErrTooLarge: a bundle has as many holders as it may have.
type HoldBundle struct {
	Header    `json:"-"`
	Server    string         `json:"server"`
	Manifests []eboot.Digest `json:"manifests"`
}

func (HoldBundle) kind() kind { return kindHoldBundle }

func (c HoldBundle) check() error {
	if err := checkServer(c.Server); err != nil {
		return err
	}
	if len(c.Manifests) == 0 {
		return fmt.Errorf("server %s: holds no bundles: %w", c.Server, eboot.ErrInvalid)
	}
	if slices.ContainsFunc(c.Manifests, eboot.Digest.IsZero) {
		return fmt.Errorf("server %s: holds a bundle without a manifest: %w", c.Server, eboot.ErrInvalid)
	}
	return nil
}

// SetDrained makes slaves go to other servers than this one, or lets them come
// again. Which servers there are is not known here: any id may be drained.
// ErrConflict: the server was removed.
type SetDrained struct {
	Header  `json:"-"`
	Server  string `json:"server"`
	Drained bool   `json:"drained"`
}

func (SetDrained) kind() kind { return kindSetDrained }

func (c SetDrained) check() error { return checkServer(c.Server) }

// RemoveServer notes that a server belongs to the cluster no more: it holds
// nothing, is not drained, and its id never counts again. The latest 1024 such ids
// are remembered. To remove it from Raft is the caller's part.
type RemoveServer struct {
	Header `json:"-"`
	Server string `json:"server"`
}

func (RemoveServer) kind() kind { return kindRemoveServer }

func (c RemoveServer) check() error { return checkServer(c.Server) }

// RaiseVersion notes that every server of the cluster knows this cluster version,
// and so every command that needs no higher one: see MinimumVersion. It never
// lowers the version: one that is reached already changes nothing and is no error.
type RaiseVersion struct {
	Header  `json:"-"`
	Version int `json:"version"`
}

func (RaiseVersion) kind() kind { return kindRaiseVersion }

// check lets higher versions pass than this program knows. Encode does not propose one, and a
// server that meets one in the log halts: it was put back to an older program after all servers
// knew the version, and may no longer do what the others do.
func (c RaiseVersion) check() error {
	if c.Version < firstVersion || c.Version > maxVersion {
		return fmt.Errorf("cluster version %d: want %d to %d: %w", c.Version, firstVersion, maxVersion, eboot.ErrInvalid)
	}
	return nil
}

func checkServer(id string) error { return eboot.CheckName("server", id) }

func (c HoldBundle) apply(t *transition) error {
	if err := t.checkPresent(c.Server); err != nil {
		return err
	}
	held := make(map[eboot.Digest]bool, len(c.Manifests))
	for _, manifest := range c.Manifests {
		held[manifest] = true
	}
	return t.changeHolders(func(b eboot.Bundle) ([]string, error) {
		i, holds := slices.BinarySearch(b.Holders, c.Server)
		switch {
		case holds || !held[b.Manifest]:
			return b.Holders, nil
		case len(b.Holders) >= maxHolders:
			return nil, fmt.Errorf("bundle %s: has %d holders already, which is the limit: %w", b.Ref(), len(b.Holders), eboot.ErrTooLarge)
		}
		return slices.Insert(slices.Clone(b.Holders), i, c.Server), nil
	})
}

func (c SetDrained) apply(t *transition) error {
	if err := t.checkPresent(c.Server); err != nil {
		return err
	}
	i, drained := slices.BinarySearch(t.next.drained, c.Server)
	if drained == c.Drained {
		return nil
	}
	t.changed = true
	if !c.Drained {
		t.tell(eboot.Event{Kind: eboot.EventServerUndrained, Text: fmt.Sprintf("slaves may go to server %s again", c.Server), Server: c.Server})
		t.next.drained = slices.Delete(slices.Clone(t.next.drained), i, i+1)
		return nil
	}
	if len(t.next.drained) >= maxDrained {
		return fmt.Errorf("server %s: %d servers are drained already, which is the limit: %w", c.Server, len(t.next.drained), eboot.ErrTooLarge)
	}
	t.next.drained = slices.Insert(slices.Clone(t.next.drained), i, c.Server)
	t.tell(eboot.Event{Kind: eboot.EventServerDrained, Text: fmt.Sprintf("slaves are to go to other servers than %s", c.Server), Server: c.Server})
	return nil
}

func (c RemoveServer) apply(t *transition) error {
	if t.next.Removed(c.Server) {
		return nil
	}
	over := max(0, len(t.next.removed)+1-maxRemoved)
	t.next.removed = append(slices.Clone(t.next.removed[over:]), c.Server)
	t.next.drained = without(t.next.drained, c.Server)
	t.changed = true
	t.tell(eboot.Event{Kind: eboot.EventServerRemoved, Text: fmt.Sprintf("server %s was removed from the cluster", c.Server), Server: c.Server})
	return t.changeHolders(func(b eboot.Bundle) ([]string, error) { return without(b.Holders, c.Server), nil })
}

func (c RaiseVersion) apply(t *transition) error {
	if c.Version > t.next.Version() {
		if t.next.Version() < coverageVersion && c.Version >= coverageVersion {
			t.coverRollouts()
		}
		t.next.version, t.changed = c.Version, true
		t.tell(eboot.Event{Kind: eboot.EventVersionRaised, Text: fmt.Sprintf("the cluster is at version %d", c.Version)})
	}
	return nil
}

// checkPresent refuses to enter anything about a server that was removed: what it
// proposed before it was told may still arrive.
func (t *transition) checkPresent(server string) error {
	if t.next.Removed(server) {
		return fmt.Errorf("server %s: was removed from the cluster: %w", server, eboot.ErrConflict)
	}
	return nil
}

// changeHolders replaces the holders of each bundle for which change returns others.
func (t *transition) changeHolders(change func(eboot.Bundle) ([]string, error)) error {
	bundles := slices.Clone(t.next.bundles)
	for i, b := range bundles {
		holders, err := change(b)
		if err != nil {
			return err
		}
		if len(holders) != len(b.Holders) {
			bundles[i].Holders = holders
			t.changed = true
		}
	}
	t.next.bundles = bundles
	return nil
}

// without returns servers without one of them, sharing memory with servers only
// when it is not among them.
func without(servers []string, server string) []string {
	i := slices.Index(servers, server)
	if i < 0 {
		return servers
	}
	return slices.Delete(slices.Clone(servers), i, i+1)
}

// Drained reports whether slaves are to go to other servers than this one.
func (s *State) Drained(server string) bool {
	_, drained := slices.BinarySearch(s.drained, server)
	return drained
}

// DrainedServers returns the ids of the servers that are drained, sorted.
func (s *State) DrainedServers() []string { return slices.Clone(s.drained) }

// Removed reports whether a server with this id was removed from the cluster; of
// those, the latest 1024 are known.
func (s *State) Removed(server string) bool { return slices.Contains(s.removed, server) }

// Version is the cluster version: every server of the cluster knows the commands
// whose MinimumVersion is not above it. It is 1 until it is raised.
func (s *State) Version() int { return max(s.version, firstVersion) }
