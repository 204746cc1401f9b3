package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/filestore"
	"eboot/filestore/mirror"
	"eboot/fsm"
	"eboot/internal/peerrpc"
)

const (
	copyRetryFirst = time.Second // after a pull that failed, doubled up to:
	copyRetryLast  = 10 * time.Second
	copyKept       = 15 * time.Minute // how long a copy waits for its bundle to become visible, beside publish.wait
	maxCopyWait    = 24 * time.Hour   // of publish.wait
	maxCopiesKept  = 64
	holdsAtOnce    = 256 // bundles in one entry of the log
)

// copies keeps every bundle of the index whole on this disk, by pulling what is
// missing from the other servers, and knows how much of each is there.
type copies struct {
	store  *filestore.Store
	mirror *mirror.Mirror
	logger hclog.Logger
	wake   chan struct{} // the disk has changed

	mu     sync.Mutex
	counts map[eboot.Digest]residence // by manifest; what changes of the disk make doubtful is dropped
	losses uint64                     // how often blobs were lost
	kept   map[eboot.Digest]keptCopy  // copies of bundles that are not visible yet, by manifest
}

// keptCopy is safe from collection until release.
type keptCopy struct {
	release func()
	until   time.Time
}

func newCopies(store *filestore.Store, m *mirror.Mirror, logger hclog.Logger) *copies {
	return &copies{
		store: store, mirror: m, logger: logger, wake: make(chan struct{}, 1),
		counts: map[eboot.Digest]residence{}, kept: map[eboot.Digest]keptCopy{},
	}
}

// lost makes everything be counted anew, and what is missing be looked for.
func (c *copies) lost() {
	c.mu.Lock()
	clear(c.counts)
	c.losses++
	c.mu.Unlock()
	c.look()
}

// gained makes what was not whole be counted anew.
func (c *copies) gained() {
	c.mu.Lock()
	maps.DeleteFunc(c.counts, func(_ eboot.Digest, r residence) bool { return r.missing > 0 })
	c.mu.Unlock()
}

// look makes what is missing be looked for now: there may be somebody who has it.
func (c *copies) look() {
	select {
	case c.wake <- struct{}{}:
	default: // it is due already
	}
}

// count returns how many blobs a bundle has and how many of them this disk lacks. While
// the manifest itself is missing, that is one of one.
func (c *copies) count(b eboot.Bundle) residence {
	c.mu.Lock()
	r, ok := c.counts[b.Manifest]
	losses := c.losses
	c.mu.Unlock()
	if ok {
		return r
	}
	r = residence{blobs: 1, missing: 1}
	if blobs, err := c.blobs(b); err != nil {
		r.problem = err.Error()
	} else {
		r = residence{blobs: len(blobs)}
		for d := range blobs {
			if !c.store.Has(d) {
				r.missing++
			}
		}
	}
	c.mu.Lock()
	if losses == c.losses { // else what was counted may be lost
		c.counts[b.Manifest] = r
	}
	c.mu.Unlock()
	return r
}

// lacks reports whether blobs of a bundle are known to be missing here, without looking.
func (c *copies) lacks(b eboot.Bundle) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[b.Manifest].missing > 0
}

// blobs returns the sizes of a bundle's manifest and files by digest.
func (c *copies) blobs(b eboot.Bundle) (map[eboot.Digest]int64, error) {
	data, err := c.store.Read(b.Manifest)
	if err != nil {
		return nil, err
	}
	manifest, err := eboot.ParseManifest(data)
	if err != nil {
		return nil, err
	}
	sizes := map[eboot.Digest]int64{b.Manifest: int64(len(data))}
	for _, e := range manifest.Entries {
		if e.Kind == eboot.KindFile {
			sizes[e.Digest] = e.Size
		}
	}
	return sizes, nil
}

// pull returns when every blob of the bundles is durable here. What was pulled is safe
// from collection until release. With from, only that server is asked.
// eboot.ErrUnavailable: no server that was asked has some of it, or the disk is full.
func (c *copies) pull(ctx context.Context, from string, bundles ...eboot.Bundle) (release func(), err error) {
	var releases []func()
	release = sync.OnceFunc(func() {
		for _, r := range releases {
			r()
		}
	})
	defer func() {
		if err != nil {
			release()
		}
		c.gained()
	}()
	take := func(want map[eboot.Digest]int64) error {
		r, err := c.mirror.PullFrom(ctx, from, want, nil)
		if err == nil {
			releases = append(releases, r)
		}
		return err
	}
	trees, times := map[eboot.Digest]int64{}, map[eboot.Digest]int64{}
	for _, b := range bundles {
		trees[b.Manifest], times[b.Times] = -1, -1
	}
	if err := take(trees); err != nil {
		return release, err
	}
	// Slaves boot without the times: see trees.go.
	if err := take(times); err != nil {
		c.logger.Warn("the modification times of a bundle are not to be had", "bundle", bundles[0].Ref(), "error", err)
	}
	for _, b := range bundles {
		want, err := c.blobs(b)
		if err != nil {
			return release, err
		}
		if err := take(want); err != nil {
			return release, err
		}
	}
	return release, nil
}

// keep holds a copy until its bundle is visible, or copyKept has passed.
func (c *copies) keep(manifest eboot.Digest, until time.Time, release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.kept[manifest]; ok {
		defer old.release()
	}
	c.kept[manifest] = keptCopy{release: release, until: until}
}

// sweep lets go of copies that the index names by now, and of old ones.
func (c *copies) sweep(state *fsm.State, now time.Time) {
	visible := map[eboot.Digest]bool{}
	for _, b := range state.Bundles() {
		visible[b.Manifest] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for manifest, k := range c.kept {
		if visible[manifest] || now.After(k.until) {
			k.release()
			delete(c.kept, manifest)
		}
	}
}

// CopyBundle returns when every blob of bundles that are being published is durable on
// this disk.
func (a *Agent) CopyBundle(ctx context.Context, r peerrpc.CopyRequest) error {
	if len(r.Bundles) == 0 {
		return fmt.Errorf("copy: no bundle given: %w", eboot.ErrInvalid)
	}
	for _, b := range r.Bundles {
		if err := b.Check(); err != nil {
			return err
		}
	}
	a.copies.sweep(a.machine.State(), a.now())
	a.copies.mu.Lock()
	kept := len(a.copies.kept)
	a.copies.mu.Unlock()
	if kept >= maxCopiesKept {
		return fmt.Errorf("copy: %d bundles that are not visible yet are held here, which is the limit: %w", kept, eboot.ErrUnavailable)
	}
	// Who publishes has all of it, and of the others one may hang.
	release, err := a.copies.pull(ctx, r.From, r.Bundles...)
	if errors.Is(err, eboot.ErrUnavailable) {
		release, err = a.copies.pull(ctx, "", r.Bundles...)
	}
	if err != nil {
		return err
	}
	a.copies.keep(r.Bundles[0].Manifest, a.now().Add(copyKept+min(r.Wait, maxCopyWait)), release)
	return nil
}

// mirrorBundles keeps the bundles of the index whole on this disk until ctx ends.
func (a *Agent) mirrorBundles(ctx context.Context) error {
	pause := copyRetryFirst
	told := map[eboot.Digest]string{} // what was logged of a bundle that could not be copied, by manifest
	for {
		changed := a.machine.Changed()
		a.copies.sweep(a.machine.State(), a.now())
		var retry <-chan time.Time
		if a.mirrorOnce(ctx, told) {
			pause = copyRetryFirst
		} else {
			retry = time.After(pause)
			pause = min(2*pause, copyRetryLast)
		}
		select {
		case <-changed:
		case <-a.copies.wake:
		case <-retry:
		case <-ctx.Done():
			return nil
		}
	}
}

// mirrorOnce looks at every bundle once and reports whether all is well.
func (a *Agent) mirrorOnce(ctx context.Context, told map[eboot.Digest]string) bool {
	state := a.view.State()
	well := true
	var whole []eboot.Digest
	for _, b := range bundlesByUse(state) {
		if ctx.Err() != nil {
			return true
		}
		r := a.copies.count(b)
		if r.missing > 0 {
			began := a.now()
			release, err := a.copies.pull(ctx, "", b)
			if err != nil {
				if text := err.Error(); told[b.Manifest] != text && ctx.Err() == nil {
					told[b.Manifest] = text
					a.logger.Warn("bundle not copied yet; trying again", "bundle", b.Ref(), "erts", b.ERTS, "missing", r.missing, "of", r.blobs, "error", err)
				}
				well = false
				continue
			}
			release() // the index names it
			delete(told, b.Manifest)
			a.recount()
			a.logger.Info("bundle copied", "bundle", b.Ref(), "erts", b.ERTS, "took", a.now().Sub(began).Round(time.Millisecond))
		}
		if !slices.Contains(b.Holders, a.server) && !slices.Contains(whole, b.Manifest) {
			whole = append(whole, b.Manifest)
		}
	}
	for batch := range slices.Chunk(whole, holdsAtOnce) {
		_, err := a.propose(ctx, fsm.HoldBundle{Header: a.ownHeader(), Server: a.server, Manifests: batch})
		if err != nil && ctx.Err() == nil {
			a.logger.Debug("holding a bundle is not entered yet", "error", err)
			well = false
		}
	}
	return well
}

// bundlesByUse returns the bundles of the index, those that channels point to first.
func bundlesByUse(state *fsm.State) []eboot.Bundle {
	var used, rest []eboot.Bundle
	seen := map[bundleKey]bool{}
	for b := range channelBundles(state) {
		if !seen[keyOf(b)] {
			seen[keyOf(b)] = true
			used = append(used, b)
		}
	}
	for _, b := range state.Bundles() {
		if !seen[keyOf(b)] {
			rest = append(rest, b)
		}
	}
	return append(used, rest...)
}
