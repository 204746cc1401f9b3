package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/uuid"

	"eboot"
	"eboot/api"
	"eboot/fsm"
	"eboot/internal/peerrpc"
)

// write is change for callers that want no more than what changed.
func (a *Agent) write(ctx context.Context, w api.Write, command func(fsm.Header) fsm.Command) (api.WriteResult, error) {
	result, err := a.change(ctx, w, command)
	if err != nil {
		return api.WriteResult{}, err
	}
	return api.WriteResult{Generation: result.Generation, Changed: result.Changed}, nil
}

// change proposes a command for who asked for it, as soon as the cluster may be given it.
func (a *Agent) change(ctx context.Context, w api.Write, command func(fsm.Header) fsm.Command) (*fsm.Result, error) {
	header, err := a.header(ctx, w)
	if err != nil {
		return nil, err
	}
	c := command(header)
	if err := a.awaitVersion(ctx, fsm.MinimumVersion(c)); err != nil {
		return nil, err
	}
	return a.propose(ctx, c)
}

// ownHeader is for a command that this server proposes by itself.
func (a *Agent) ownHeader() fsm.Header {
	return fsm.Header{RequestID: uuid.NewString(), At: a.now().UnixMilli()}
}

// header puts the proposer's time, the request id and who asked into a command: the state
// machine itself has no clock. Who asked is left out only in a cluster that cannot be told.
func (a *Agent) header(ctx context.Context, w api.Write) (fsm.Header, error) {
	if !w.By.IsZero() {
		if err := a.awaitActors(ctx); err != nil {
			return fsm.Header{}, err
		}
	}
	h := fsm.Header{RequestID: w.RequestID, At: a.now().UnixMilli(), ExpectGeneration: w.ExpectGeneration, By: w.By}
	return h.For(a.view.State().Version()), nil
}

// awaitActors returns when the version of the cluster is known here to be one that is told who
// asked, or not to be: a server that has just started may have neither its log replayed nor a
// serving cache, and a cluster that was just founded is about to be raised.
func (a *Agent) awaitActors(ctx context.Context) error {
	if a.view.State().Version() >= fsm.VersionActors {
		return nil
	}
	if err := a.Fresh(ctx); err != nil {
		return err
	}
	if known := a.knownVersion(); known != 0 && known < fsm.VersionActors {
		return nil
	}
	return a.awaitVersion(ctx, fsm.VersionActors)
}

// Entries returns the whitelist.
func (a *Agent) Entries() []eboot.WhitelistEntry {
	state := a.view.State()
	entries := make([]eboot.WhitelistEntry, 0, state.WhitelistSize())
	for e := range state.Whitelist() {
		entries = append(entries, *e)
	}
	return entries
}

// Allow adds or replaces entries.
func (a *Agent) Allow(ctx context.Context, w api.Write, entries []eboot.WhitelistEntry) (api.WriteResult, error) {
	if len(entries) == 0 {
		return api.WriteResult{}, fmt.Errorf("allow: no entries given: %w", eboot.ErrInvalid)
	}
	for i := range entries {
		if entries[i].Channel == "" {
			entries[i].Channel = eboot.DefaultChannel
		}
	}
	return a.write(ctx, w, func(h fsm.Header) fsm.Command { return fsm.AllowSlaves{Header: h, Entries: entries} })
}

// Deny removes entries.
func (a *Agent) Deny(ctx context.Context, w api.Write, prefixes []netip.Prefix) (api.WriteResult, error) {
	if len(prefixes) == 0 {
		return api.WriteResult{}, fmt.Errorf("deny: no prefixes given: %w", eboot.ErrInvalid)
	}
	return a.write(ctx, w, func(h fsm.Header) fsm.Command { return fsm.DenySlaves{Header: h, Prefixes: prefixes} })
}

// Check returns the entry that decides about an address.
func (a *Agent) Check(slave netip.Addr) api.SlaveCheck {
	entry, ok := a.view.State().Lookup(slave)
	return api.SlaveCheck{Slave: slave, Whitelisted: ok, Entry: entry}
}

// Channels returns every channel; the default one stands there from the beginning.
func (a *Agent) Channels() []eboot.Channel {
	channels := a.view.State().Channels()
	for _, c := range channels {
		if c.Name == eboot.DefaultChannel {
			return channels
		}
	}
	return append([]eboot.Channel{emptyDefaultChannel()}, channels...)
}

func emptyDefaultChannel() eboot.Channel {
	return eboot.Channel{Name: eboot.DefaultChannel, Bundles: map[string]eboot.Ref{}}
}

// Channel returns one channel.
func (a *Agent) Channel(name string) (eboot.Channel, error) {
	if err := eboot.CheckName("channel", name); err != nil {
		return eboot.Channel{}, err
	}
	c, ok := a.view.State().Channel(name)
	switch {
	case ok:
		return c, nil
	case name == eboot.DefaultChannel:
		return emptyDefaultChannel(), nil
	}
	return c, fmt.Errorf("channel %s: does not exist; `eboot channel set %s NAME@VERSION` makes it: %w", name, name, eboot.ErrNotFound)
}

// SetChannel moves a channel, sets its options, or both in one step.
func (a *Agent) SetChannel(ctx context.Context, w api.Write, channel string, set api.ChannelSet) (api.WriteResult, error) {
	switch {
	case set.Options != eboot.ChannelOptions{}:
		return a.write(ctx, w, func(h fsm.Header) fsm.Command {
			return fsm.ConfigureChannel{Header: h, Channel: channel, Options: set.Options, Ref: set.Bundle, ERTS: set.ERTS}
		})
	case set.Bundle.IsZero():
		return api.WriteResult{}, fmt.Errorf("channel %s: neither a bundle nor options are given: %w", channel, eboot.ErrInvalid)
	}
	return a.write(ctx, w, func(h fsm.Header) fsm.Command {
		return fsm.SetChannel{Header: h, Channel: channel, Ref: set.Bundle, ERTS: set.ERTS}
	})
}

// UndoChannel takes the latest move of a channel back.
func (a *Agent) UndoChannel(ctx context.Context, w api.Write, channel string) (api.WriteResult, error) {
	return a.write(ctx, w, func(h fsm.Header) fsm.Command { return fsm.UndoChannel{Header: h, Channel: channel} })
}

// ProtectBundle keeps a bundle from being removed, or lets it go again.
func (a *Agent) ProtectBundle(ctx context.Context, w api.Write, ref eboot.Ref, protected bool) (api.WriteResult, error) {
	return a.write(ctx, w, func(h fsm.Header) fsm.Command { return fsm.ProtectBundle{Header: h, Ref: ref, Protected: protected} })
}

// awaitVersion gives a cluster of servers that all know a version the moment that its
// leader needs to raise it; a server alone raises it here. Whether the cluster is there
// then, the change finds out (checkVersion). eboot.ErrNoLeader: nobody could raise it.
func (a *Agent) awaitVersion(ctx context.Context, version int) error {
	ctx, cancel := context.WithTimeout(ctx, leaderPatience)
	defer cancel()
	for {
		changed, led := a.machine.Changed(), a.cluster.LeaderChanged()
		if a.view.State().Version() >= version {
			return nil
		}
		if err := a.raftStopped(); err != nil {
			return err
		}
		if err := a.raiseVersion(ctx); err != nil {
			a.logger.Debug("cluster version not raised yet", "error", err)
		}
		select {
		case <-changed:
		case <-led:
		case <-ctx.Done():
			if a.cluster.Status().Leader == "" {
				return fmt.Errorf("write: %s: %w", a.missingVoters(), eboot.ErrNoLeader)
			}
			return nil
		}
	}
}

func (a *Agent) addBundle(ctx context.Context, w api.Write, b eboot.Bundle, channel string) (*fsm.Result, error) {
	w.RequestID += "/" + b.ERTS // one request, one entry for each ERTS version
	return a.change(ctx, w, func(h fsm.Header) fsm.Command { return fsm.AddBundle{Header: h, Bundle: b, Channel: channel} })
}

// Bundles returns every bundle.
func (a *Agent) Bundles() []api.BundleDetail {
	state := a.view.State()
	return a.details(state, state.Bundles())
}

// Bundle returns what was published under ref.
func (a *Agent) Bundle(ref eboot.Ref) ([]api.BundleDetail, error) {
	state := a.view.State()
	bundles := state.BundlesOf(ref)
	if len(bundles) == 0 {
		return nil, noBundle(ref)
	}
	details := a.details(state, bundles)
	for i := range details {
		details[i].PinnedBy = a.pinnedBy(details[i].Bundle)
	}
	infos := a.infos(context.Background())
	for i := range details {
		details[i].Copies = a.copiesOf(details[i].Bundle, infos)
	}
	return details, nil
}

func noBundle(ref eboot.Ref) error {
	return fmt.Errorf("bundle %s: does not exist; `eboot bundle list` shows what does: %w", ref, eboot.ErrNotFound)
}

// pinsOf returns the pins of slaves whose latest boot began with b.
func (a *Agent) pinsOf(b eboot.Bundle) []eboot.Pin {
	return slices.DeleteFunc(a.fleet.Pins(), func(p eboot.Pin) bool { return p.Manifest != b.Manifest || p.ERTS != b.ERTS })
}

// pinnedBy returns the first of the slaves whose latest boot began with b.
func (a *Agent) pinnedBy(b eboot.Bundle) []eboot.Pin {
	pins := a.pinsOf(b)
	return slices.Clip(pins[:min(len(pins), api.MaxPinnedBy)])
}

// copiesOf says how much of a bundle each server holds.
func (a *Agent) copiesOf(b eboot.Bundle, infos map[string]peerrpc.ServerInfo) []api.BundleCopy {
	var copies []api.BundleCopy
	for _, s := range a.cluster.Status().Servers {
		c := api.BundleCopy{Server: s.ID, Address: s.Address}
		info, answered := infos[s.ID]
		if !answered {
			c.Problem = "does not answer"
		}
		for _, d := range info.Bundles {
			if d.Manifest == b.Manifest && d.ERTS == b.ERTS {
				c.Blobs, c.Missing = d.Blobs, d.Missing
			}
		}
		if answered && c.Blobs == 0 {
			c.Problem = "has not heard of it yet"
		}
		copies = append(copies, c)
	}
	return copies
}

func (a *Agent) details(state *fsm.State, bundles []eboot.Bundle) []api.BundleDetail {
	type booted struct {
		manifest eboot.Digest
		erts     string
	}
	pins := map[booted]int{}
	for _, p := range a.fleet.Pins() {
		pins[booted{p.Manifest, p.ERTS}]++
	}
	channels := state.Channels()
	details := make([]api.BundleDetail, 0, len(bundles))
	for _, b := range bundles {
		d := api.BundleDetail{Bundle: b, Channels: []string{}, Pins: pins[booted{b.Manifest, b.ERTS}]}
		for _, c := range channels {
			if c.Bundles[b.ERTS] == b.Ref() {
				d.Channels = append(d.Channels, c.Name)
			}
		}
		onDisk := bundleOnDisk(b, a.copies.count(b))
		d.Disk = &onDisk
		details = append(details, d)
	}
	return details
}

func bundleOnDisk(b eboot.Bundle, r residence) eboot.BundleOnDisk {
	return eboot.BundleOnDisk{Ref: b.Ref(), ERTS: b.ERTS, Manifest: b.Manifest, Blobs: r.blobs, Missing: r.missing}
}

// RemoveBundle takes a bundle out of the index and collects its blobs. What is there
// is looked at before; whether it may go, and what a repeat is answered, is the state
// machine's to say.
func (a *Agent) RemoveBundle(ctx context.Context, w api.Write, ref eboot.Ref, erts string, force bool) (api.WriteResult, error) {
	state := a.view.State()
	for _, b := range state.BundlesOf(ref) {
		if erts != "" && b.ERTS != erts {
			continue
		}
		if pins := a.orphans(state, b); pins > 0 && !force {
			return api.WriteResult{}, fmt.Errorf("bundle %s: %d slaves booted it and may still load code from it; wait until they have booted another, or use --force, after which they get no more code until they boot again: %w", ref, pins, eboot.ErrConflict)
		}
	}
	result, err := a.write(ctx, w, func(h fsm.Header) fsm.Command { return fsm.RemoveBundle{Header: h, Ref: ref, ERTS: erts} })
	if err == nil {
		a.requestCollection()
	}
	return result, err
}

// orphans counts the slaves that would get no more code if b were gone: those
// pinned to its tree, when no other bundle for their ERTS has the same.
func (a *Agent) orphans(state *fsm.State, b eboot.Bundle) int {
	for _, other := range state.Bundles() {
		if other.Manifest == b.Manifest && other.ERTS == b.ERTS && other.Ref() != b.Ref() {
			return 0
		}
	}
	pins := 0
	since := a.now().Add(-a.config.Retention.PinMaxAge)
	for _, p := range a.pinsOf(b) {
		if p.At.After(since) {
			pins++
		}
	}
	return pins
}
