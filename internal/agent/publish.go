package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"eboot"
	"eboot/api"
	"eboot/filestore"
)

const (
	maxPublishes = 16               // open at once; each holds a manifest in memory
	publishIdle  = 10 * time.Minute // after which an open publish is forgotten
)

// publishes are the publishes under way. What one of them named is safe from
// collection until it is committed, aborted or forgotten.
type publishes struct {
	store *filestore.Store
	now   func() time.Time

	mu   sync.Mutex
	open map[string]*publish
}

// publish is one bundle on its way in.
type publish struct {
	id      string
	ingest  *filestore.Ingest
	sizes   map[eboot.Digest]int64 // every blob of the bundle, manifest and times too; guarded by busy
	bundles []eboot.Bundle         // one for each ERTS version; nil until the manifest is there; guarded by busy

	earlyBlobs, earlyBytes atomic.Int64 // that came before the manifest

	busy     sync.RWMutex       // writers: description, commit and close; readers: blobs coming in
	latest   time.Time          // guarded by publishes.mu
	closed   bool               // guarded by busy
	spread   bool               // the other servers have it, and bundles say who; guarded by busy
	laggards []api.Laggard      // those that have not; guarded by busy
	result   *api.PublishResult // of a commit that was done; guarded by busy

	committed atomic.Bool // result is there, and the manifest is let go of
}

func newPublishes(store *filestore.Store, now func() time.Time) *publishes {
	return &publishes{store: store, now: now, open: map[string]*publish{}}
}

// sweep forgets idle publishes until ctx ends, and all of them then.
func (p *publishes) sweep(ctx context.Context) error {
	ticker := time.NewTicker(publishIdle / 10)
	defer ticker.Stop()
	for {
		var idle []*publish
		select {
		case now := <-ticker.C:
			idle = p.forget(now.Add(-publishIdle))
		case <-ctx.Done():
			idle = p.forget(p.now().Add(publishIdle))
		}
		var errs []error
		for _, one := range idle {
			errs = append(errs, one.close())
		}
		if ctx.Err() != nil {
			return errors.Join(errs...)
		}
	}
}

// forget takes out the publishes that were last heard of before limit and have no
// blob on its way.
func (p *publishes) forget(limit time.Time) []*publish {
	p.mu.Lock()
	defer p.mu.Unlock()
	var idle []*publish
	for id, one := range p.open {
		if one.latest.Before(limit) && one.busy.TryLock() {
			one.busy.Unlock()
			idle = append(idle, one)
			delete(p.open, id)
		}
	}
	return idle
}

func (p *publish) close() error {
	p.busy.Lock()
	defer p.busy.Unlock()
	return p.closeLocked()
}

// endedLocked is what a call hears that found the publish and lost it to another
// call; busy is held, for reading at least.
func (p *publish) endedLocked() error {
	if p.closed {
		return fmt.Errorf("publish %s: was ended: %w", p.id, eboot.ErrNotFound)
	}
	return nil
}

func (p *publish) closeLocked() error {
	if p.closed {
		return nil
	}
	p.closed = true
	return p.ingest.Close()
}

func (p *publishes) find(id string) (*publish, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	one, ok := p.open[id]
	if !ok {
		return nil, fmt.Errorf("publish %s: is not open; it may have been idle for more than %s, publish again: %w", id, publishIdle, eboot.ErrNotFound)
	}
	one.latest = p.now()
	return one, nil
}

// add opens a publish. Those that were committed do not count: they are remembered
// for repeats only.
func (p *publishes) add(one *publish) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	open := 0
	for _, other := range p.open {
		if !other.committed.Load() {
			open++
		}
	}
	if open >= maxPublishes || len(p.open) >= 64*maxPublishes {
		return fmt.Errorf("publish: %d are under way, which is the limit; try again later: %w", open, eboot.ErrUnavailable)
	}
	one.latest = p.now()
	p.open[one.id] = one
	return nil
}

// maxHeld bounds the answer to OpenPublish: 4 MiB.
const maxHeld = 1 << 20

// OpenPublish begins a publish, of what is said later.
func (a *Agent) OpenPublish(ctx context.Context) (api.PublishOpened, error) {
	// Before anything travels: a server that is cut off could not make it visible, and
	// the client goes on to another.
	if err := a.awaitLeader(ctx); err != nil {
		return api.PublishOpened{}, fmt.Errorf("publish: %s: %w", a.missingVoters(), err)
	}
	one := &publish{id: uuid.NewString(), ingest: a.store.Ingest()}
	if err := a.publishes.add(one); err != nil {
		return api.PublishOpened{}, errors.Join(err, one.ingest.Close())
	}
	opened := api.PublishOpened{ID: one.id}
	if digests := a.store.Digests(); len(digests) <= maxHeld {
		opened.Held = make([]byte, 0, 4*len(digests))
		for _, d := range digests {
			opened.Held = append(opened.Held, d[:4]...)
		}
	}
	return opened, nil
}

// DescribePublish checks everything that can be checked before the blobs are there.
func (a *Agent) DescribePublish(_ context.Context, id string, r api.PublishRequest) (api.PublishDescribed, error) {
	sizes, bundles, err := a.readRequest(r)
	if err != nil {
		return api.PublishDescribed{}, err
	}
	described := api.PublishDescribed{Missing: []eboot.Digest{}, Unchanged: true}
	state := a.machine.State()
	for i, b := range bundles {
		known, ok := state.Bundle(b.Ref(), b.ERTS)
		switch {
		case !ok:
			described.Unchanged = false
		case known.Manifest != b.Manifest:
			return api.PublishDescribed{}, fmt.Errorf("bundle %s for ERTS %s exists with other content (%s, not %s); choose another version: %w",
				b.Ref(), b.ERTS, known.Manifest.Short(), b.Manifest.Short(), eboot.ErrConflict)
		case known.BootScript != b.BootScript || known.SysConfig != b.SysConfig:
			return api.PublishDescribed{}, fmt.Errorf("bundle %s for ERTS %s exists with boot script %s, not %s; choose another version: %w",
				b.Ref(), b.ERTS, known.BootScript, b.BootScript, eboot.ErrConflict)
		default:
			bundles[i] = known // the first publish gave the times
		}
	}

	one, err := a.publishes.find(id)
	if err != nil {
		return api.PublishDescribed{}, err
	}
	one.busy.Lock()
	defer one.busy.Unlock()
	if err := one.endedLocked(); err != nil {
		return api.PublishDescribed{}, err
	}
	if one.bundles != nil {
		return api.PublishDescribed{}, fmt.Errorf("publish %s: has a manifest already: %w", id, eboot.ErrConflict)
	}
	came := map[eboot.Digest]bool{} // and not committed
	err = one.ingest.Keep(func(d eboot.Digest) bool {
		_, came[d] = sizes[d]
		return came[d]
	})
	if err != nil {
		return api.PublishDescribed{}, err
	}
	one.ingest.Protect(maps.Keys(sizes))
	for d := range sizes {
		if !came[d] && !a.store.Has(d) {
			described.Missing = append(described.Missing, d)
		}
	}
	// The manifest and the times are blobs, too: on disk with the commit, like the others.
	for _, data := range [][]byte{r.Manifest, r.Times} {
		d := eboot.DigestOf(data)
		sizes[d] = int64(len(data))
		if err := one.ingest.Put(context.Background(), d, sizes[d], bytes.NewReader(data)); err != nil {
			return api.PublishDescribed{}, err
		}
	}
	one.sizes, one.bundles = sizes, bundles
	return described, nil
}

// readRequest returns the blobs of the tree with their sizes, and one bundle for each
// ERTS version. It stores nothing.
func (a *Agent) readRequest(r api.PublishRequest) (sizes map[eboot.Digest]int64, bundles []eboot.Bundle, err error) {
	manifest, err := eboot.ParseManifest(r.Manifest)
	if err != nil {
		return nil, nil, err
	}
	if _, err := eboot.ParseTimes(r.Times, len(manifest.Entries)); err != nil {
		return nil, nil, err
	}
	if len(r.ERTS) == 0 {
		return nil, nil, fmt.Errorf("publish %s@%s: no ERTS version given: %w", r.Name, r.Version, eboot.ErrInvalid)
	}
	for _, p := range []string{r.BootScript, r.SysConfig} {
		if e := manifest.Find(p); p != "" && (e == nil || e.Kind == eboot.KindDirectory) {
			return nil, nil, fmt.Errorf("publish %s@%s: %q is not a file of the tree: %w", r.Name, r.Version, p, eboot.ErrInvalid)
		}
	}
	sizes = map[eboot.Digest]int64{}
	for _, e := range manifest.Entries {
		if e.Kind != eboot.KindFile {
			continue
		}
		if size, ok := sizes[e.Digest]; ok && size != e.Size {
			return nil, nil, fmt.Errorf("publish %s@%s: %q: one digest with two sizes: %w", r.Name, r.Version, e.Path, eboot.ErrInvalid)
		}
		sizes[e.Digest] = e.Size
	}
	files, total := manifest.Totals()
	seen := map[string]bool{}
	for _, erts := range r.ERTS {
		if seen[erts] {
			continue
		}
		seen[erts] = true
		b := eboot.Bundle{
			Name: r.Name, Version: r.Version, ERTS: erts,
			Manifest: eboot.DigestOf(r.Manifest), Times: eboot.DigestOf(r.Times),
			BootScript: r.BootScript, SysConfig: r.SysConfig, Files: files, Bytes: total,
			Holders: []string{a.server},
		}
		if err := b.Check(); err != nil {
			return nil, nil, err
		}
		bundles = append(bundles, b)
	}
	return sizes, bundles, nil
}

// PutBlob takes one blob in.
func (a *Agent) PutBlob(ctx context.Context, id string, d eboot.Digest, size int64, content io.Reader) error {
	one, err := a.publishes.find(id)
	if err != nil {
		return err
	}
	one.busy.RLock()
	defer one.busy.RUnlock()
	if err := one.endedLocked(); err != nil {
		return err
	}
	if err := one.expects(d, size); err != nil {
		return fmt.Errorf("blob %s of %d bytes: %w", d.Short(), size, err)
	}
	return one.ingest.Put(ctx, d, size, content)
}

// expects reports whether the blob may be one of the tree; busy is held for reading.
// What comes before the manifest may be as much as the largest tree has.
func (p *publish) expects(d eboot.Digest, size int64) error {
	if p.bundles != nil {
		if want, ok := p.sizes[d]; !ok || want != size {
			return fmt.Errorf("is not in the manifest: %w", eboot.ErrInvalid)
		}
		return nil
	}
	if p.earlyBlobs.Add(1) > eboot.MaxTreeEntries || p.earlyBytes.Add(size) > eboot.MaxTreeBytes {
		return fmt.Errorf("comes after more than a tree can have: %w", eboot.ErrTooLarge)
	}
	return nil
}

// commitIngest also counts anew what this server holds: a publish heals damage.
func (a *Agent) commitIngest(one *publish) error {
	if err := one.ingest.Commit(); err != nil {
		return err
	}
	a.recount()
	return nil
}

// CommitPublish makes the bundle visible with one entry in the log for each
// ERTS version, after every blob is on disk. Repeating it returns what the first did.
// When it fails the publish stays open, and what came in stays safe from collection:
// an entry whose outcome is unknown may still make the bundle visible.
func (a *Agent) CommitPublish(ctx context.Context, id string, w api.Write, c api.PublishCommit) (api.PublishResult, error) {
	one, err := a.publishes.find(id)
	if err != nil {
		return api.PublishResult{}, err
	}
	one.busy.Lock()
	defer one.busy.Unlock()
	if one.result != nil {
		return *one.result, nil
	}
	if err := one.endedLocked(); err != nil {
		return api.PublishResult{}, err
	}
	if one.bundles == nil {
		return api.PublishResult{}, fmt.Errorf("publish %s: its manifest has not come: %w", id, eboot.ErrConflict)
	}
	if servers := len(a.cluster.Status().Servers); c.MinCopies > max(servers, 1) {
		return api.PublishResult{}, fmt.Errorf("publish %s: %d copies asked for, the cluster has %d servers: %w", one.bundles[0].Ref(), c.MinCopies, servers, eboot.ErrInvalid)
	}
	if err := a.signPublish(ctx, one.bundles, c.Signatures); err != nil {
		return api.PublishResult{}, err
	}
	if err := a.commitIngest(one); err != nil {
		return api.PublishResult{}, err
	}
	missing := 0
	for d := range one.sizes {
		if !a.store.Has(d) {
			missing++
		}
	}
	if missing > 0 {
		return api.PublishResult{}, fmt.Errorf("publish %s: %d of %d blobs have not arrived; publish again: %w", one.bundles[0].Ref(), missing, len(one.sizes), eboot.ErrConflict)
	}
	if !one.spread { // a repeat must say what the first said, or it is another change
		holders, laggards, err := a.spread(ctx, one.bundles, c.MinCopies)
		if err != nil {
			return api.PublishResult{}, err
		}
		for i := range one.bundles {
			one.bundles[i].Holders = holders
		}
		one.spread, one.laggards = true, laggards
	}
	result, err := a.commitBundles(ctx, one.bundles, w, c.Channel)
	if err != nil {
		return api.PublishResult{}, err
	}
	result.Laggards = one.laggards
	one.result, one.sizes = &result, nil
	one.committed.Store(true)
	if err := one.closeLocked(); err != nil {
		a.logger.Warn("publish not cleaned up", "id", id, "error", err)
	}
	return result, nil
}

func (a *Agent) commitBundles(ctx context.Context, bundles []eboot.Bundle, w api.Write, channel string) (api.PublishResult, error) {
	result := api.PublishResult{}
	for i, b := range bundles {
		written, err := a.addBundle(ctx, w, b, channel)
		if i > 0 && (errors.Is(err, eboot.ErrNoLeader) || errors.Is(err, eboot.ErrTimeout)) {
			err = fmt.Errorf("publish %s: done for %d of %d ERTS versions: %v: %w", b.Ref(), i, len(bundles), err, eboot.ErrUnknownOutcome)
		}
		if err != nil {
			return api.PublishResult{}, err
		}
		result.Generation = written.Generation
		result.Changed = result.Changed || written.Changed
		w.ExpectGeneration = nil // met by the first entry; that one may have raised it
		state := a.machine.State()
		stored, ok := state.Bundle(b.Ref(), b.ERTS)
		if !ok && state.Index() < written.Index {
			stored, ok = b, true // this server has not been told yet
		}
		if !ok {
			return api.PublishResult{}, fmt.Errorf("publish %s: was removed at the same moment: %w", b.Ref(), eboot.ErrConflict)
		}
		result.Bundles = append(result.Bundles, stored)
	}
	return result, nil
}

// AbortPublish drops what has not been committed.
func (a *Agent) AbortPublish(id string) error {
	one, err := a.publishes.find(id)
	if err != nil {
		return err
	}
	a.publishes.mu.Lock()
	delete(a.publishes.open, id)
	a.publishes.mu.Unlock()
	return one.close()
}
