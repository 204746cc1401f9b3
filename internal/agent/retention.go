package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"eboot"
	"eboot/fsm"
)

const (
	retentionEvery = 10 * time.Minute // beside after every change of bundles and channels
	retentionRetry = time.Minute      // after it was not known what slaves run
)

// retain removes bundles that are too many, while this server leads, until ctx ends.
func (a *Agent) retain(ctx context.Context) error {
	if a.config.Retention.Keep == 0 {
		return nil
	}
	type look struct {
		generation uint64
		bundles    int
	}
	var seen look
	for {
		changed, led := a.machine.Changed(), a.cluster.LeaderChanged()
		wait := retentionEvery
		state := a.machine.State()
		if now := (look{state.Generation(), len(state.Bundles())}); a.cluster.Status().Role == roleLeader && now != seen {
			seen = now
			if err := a.removeOld(ctx, state); err != nil && ctx.Err() == nil {
				a.logger.Warn("old bundles are not removed; trying again", "error", err)
				seen, wait = look{}, retentionRetry
				changed = nil
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
			seen = look{}
		case <-changed:
		case <-led:
			seen = look{}
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
	}
}

// removeOld removes what superfluous finds, when every server has said what its slaves run.
func (a *Agent) removeOld(ctx context.Context, state *fsm.State) error {
	candidates := superfluous(state, a.config.Retention.Keep)
	if len(candidates) == 0 {
		return nil
	}
	pins, err := a.allPins(ctx)
	if err != nil {
		return err
	}
	since := a.now().Add(-a.config.Retention.PinMaxAge)
	pinned := map[eboot.Digest]bool{}
	for _, p := range pins {
		if p.At.After(since) {
			pinned[p.Manifest] = true
		}
	}
	for _, b := range candidates {
		if pinned[b.Manifest] {
			continue
		}
		generation := state.Generation() // what was looked at is still so, or it is looked at again
		header := a.ownHeader()
		header.ExpectGeneration = &generation
		switch _, err := a.propose(ctx, fsm.RemoveBundle{Header: header, Ref: b.Ref(), ERTS: b.ERTS}); {
		case errors.Is(err, eboot.ErrConflict): // it is in use since
			continue
		case err != nil:
			return fmt.Errorf("remove bundle %s for ERTS %s: %w", b.Ref(), b.ERTS, err)
		}
		a.logger.Info("bundle was removed: there are newer ones, and nothing uses it", "bundle", b.Ref(), "erts", b.ERTS)
	}
	a.requestCollection()
	return nil
}

// allPins returns what slaves run, as every server of the cluster knows it.
func (a *Agent) allPins(ctx context.Context) ([]eboot.Pin, error) {
	pins := a.fleet.Pins()
	for _, s := range a.cluster.Status().Servers {
		if s.ID == a.server {
			continue
		}
		asking, cancel := context.WithTimeout(ctx, levelTimeout)
		theirs, err := a.peers.rpc.Pins(asking, s.ID)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("what the slaves of server %s run is not known: %w", s.ID, err)
		}
		pins = append(pins, theirs...)
	}
	return pins, nil
}

// superfluous returns the bundles beyond the keep latest of each name and ERTS version that
// nothing in the state holds: no channel points to them or did before its latest move, no
// rollout needs them, and they are not protected.
func superfluous(state *fsm.State, keep int) []eboot.Bundle {
	type use struct {
		ref  eboot.Ref
		erts string
	}
	used := map[use]bool{}
	for _, c := range state.Channels() {
		for erts, ref := range c.Bundles {
			used[use{ref, erts}] = true
		}
		previous := map[string]bool{} // ERTS versions whose latest move was met
		for _, move := range slices.Backward(c.History) {
			if !previous[move.ERTS] {
				previous[move.ERTS] = true
				used[use{move.From, move.ERTS}] = true
			}
		}
	}
	for _, r := range state.Rollouts() {
		for erts, ref := range r.Base {
			used[use{ref, erts}] = true
		}
		for _, b := range state.BundlesOf(r.Target) {
			used[use{r.Target, b.ERTS}] = true
		}
	}
	type line struct{ name, erts string }
	lines := map[line][]eboot.Bundle{}
	for _, b := range state.Bundles() {
		l := line{b.Name, b.ERTS}
		lines[l] = append(lines[l], b)
	}
	var excess []eboot.Bundle
	for _, bundles := range lines {
		slices.SortFunc(bundles, func(a, b eboot.Bundle) int {
			return cmp.Or(b.PublishedAt.Compare(a.PublishedAt), cmp.Compare(b.Version, a.Version))
		})
		for _, b := range bundles[min(keep, len(bundles)):] {
			if !b.Protected && !used[use{b.Ref(), b.ERTS}] {
				excess = append(excess, b)
			}
		}
	}
	slices.SortFunc(excess, func(a, b eboot.Bundle) int {
		return cmp.Or(a.PublishedAt.Compare(b.PublishedAt), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version), cmp.Compare(a.ERTS, b.ERTS))
	})
	return excess
}
