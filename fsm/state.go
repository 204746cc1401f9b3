package fsm

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/gaissmai/bart"

	"eboot"
)

// State is one version of the replicated state. It never changes, so what its
// methods return must not be modified: neither entries behind pointers, nor maps or
// slices inside bundles and channels.
type State struct {
	index      uint64
	generation uint64
	cluster    string
	name       string

	whitelist *bart.Table[*eboot.WhitelistEntry] // changed by its persistent operations only
	bundles   []eboot.Bundle                     // by name, version, ERTS version
	channels  []eboot.Channel                    // by name
	rollouts  []*eboot.Rollout                   // by channel, the latest of each
	answers   []*answer                          // oldest first, at most rememberedRequests
	events    []eboot.Event                      // oldest first, at most MaxEvents
	tokens    []eboot.Token                      // by id, at most eboot.MaxTokens

	version int      // of the cluster; 0: never raised
	drained []string // ids of servers, sorted
	removed []string // ids of servers, oldest first, at most maxRemoved

	digest func() eboot.Digest // computed once
}

// newState returns s with a digest of its own.
func newState(s State) *State {
	next := &s
	next.digest = sync.OnceValue(next.computeDigest)
	return next
}

func emptyState() *State { return newState(State{whitelist: new(bart.Table[*eboot.WhitelistEntry])}) }

// successor is a copy to build the next state in: what it shares with s is
// replaced, never modified.
func (s *State) successor(index uint64) *State {
	next := *s
	next.index = index
	return newState(next)
}

// Index is the Raft index of the latest command that the state contains.
func (s *State) Index() uint64 { return s.index }

// Generation counts the changes of what slaves may boot.
func (s *State) Generation() uint64 { return s.generation }

// Cluster is the cluster's UUID; empty before Init.
func (s *State) Cluster() string { return s.cluster }

// Name is the cluster's name as given to Init.
func (s *State) Name() string { return s.name }

// Lookup returns the entry with the longest prefix that covers a.
func (s *State) Lookup(a netip.Addr) (*eboot.WhitelistEntry, bool) {
	return s.whitelist.Lookup(a.Unmap())
}

// Entry returns the entry of exactly this prefix.
func (s *State) Entry(p netip.Prefix) (*eboot.WhitelistEntry, bool) {
	if eboot.CheckPrefix(p) != nil {
		return nil, false
	}
	return s.whitelist.Get(p)
}

// Whitelist yields the entries by address, shorter prefixes first.
func (s *State) Whitelist() iter.Seq[*eboot.WhitelistEntry] {
	return func(yield func(*eboot.WhitelistEntry) bool) {
		for _, e := range s.whitelist.AllSorted4() {
			if !yield(e) {
				return
			}
		}
	}
}

// WhitelistSize is the number of entries.
func (s *State) WhitelistSize() int { return s.whitelist.Size() }

// Bundles returns all bundles by name, version and ERTS version, compared as text.
func (s *State) Bundles() []eboot.Bundle { return slices.Clone(s.bundles) }

// BundlesOf returns what was published as ref, by ERTS version.
func (s *State) BundlesOf(ref eboot.Ref) []eboot.Bundle { return slices.Clone(s.bundlesOf(ref)) }

func (s *State) bundlesOf(ref eboot.Ref) []eboot.Bundle {
	from, _ := s.findBundle(ref, "")
	to := from
	for to < len(s.bundles) && s.bundles[to].Ref() == ref {
		to++
	}
	return s.bundles[from:to]
}

// Bundle returns the bundle published as ref for one ERTS version.
func (s *State) Bundle(ref eboot.Ref, erts string) (eboot.Bundle, bool) {
	i, ok := s.findBundle(ref, erts)
	if !ok {
		return eboot.Bundle{}, false
	}
	return s.bundles[i], true
}

// BundleByManifest returns a bundle with this identity for one ERTS version. The
// same tree may be published under several names, with other boot scripts; the one that was
// published first is returned, so that no later publish decides what answers for it.
func (s *State) BundleByManifest(manifest eboot.Digest, erts string) (found eboot.Bundle, ok bool) {
	for i := range s.bundles {
		if b := &s.bundles[i]; b.Manifest == manifest && b.ERTS == erts && (!ok || b.PublishedAt.Before(found.PublishedAt)) {
			found, ok = *b, true
		}
	}
	return found, ok
}

func (s *State) findBundle(ref eboot.Ref, erts string) (int, bool) {
	return slices.BinarySearchFunc(s.bundles, eboot.Bundle{Name: ref.Name, Version: ref.Version, ERTS: erts}, compareBundles)
}

func compareBundles(a, b eboot.Bundle) int {
	return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Version, b.Version), strings.Compare(a.ERTS, b.ERTS))
}

// Channels returns all channels by name.
func (s *State) Channels() []eboot.Channel { return slices.Clone(s.channels) }

// Channel returns one channel.
func (s *State) Channel(name string) (eboot.Channel, bool) {
	i, ok := s.findChannel(name)
	if !ok {
		return eboot.Channel{}, false
	}
	return s.channels[i], true
}

// ChannelBundle returns the bundle that a channel points to for one ERTS version.
func (s *State) ChannelBundle(channel, erts string) (eboot.Bundle, bool) {
	i, ok := s.findChannel(channel)
	if !ok {
		return eboot.Bundle{}, false
	}
	ref, ok := s.channels[i].Bundles[erts]
	if !ok {
		return eboot.Bundle{}, false
	}
	return s.Bundle(ref, erts)
}

func (s *State) findChannel(name string) (int, bool) {
	return slices.BinarySearchFunc(s.channels, name, func(c eboot.Channel, name string) int { return strings.Compare(c.Name, name) })
}
