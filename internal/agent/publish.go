package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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
	sizes   map[eboot.Digest]int64 // every blob of the bundle, manifest and times too
	bundles []eboot.Bundle         // one for each ERTS version

	busy   sync.RWMutex       // writers: flush, commit and close; readers: blobs coming in
	latest time.Time          // guarded by publishes.mu
	closed bool               // guarded by busy
	result *api.PublishResult // of a commit that was done; guarded by busy

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

// OpenPublish checks everything that can be checked before a blob travels.
func (a *Agent) OpenPublish(_ context.Context, r api.PublishRequest) (api.PublishOpened, error) {
	one, err := a.newPublish(r)
	if err != nil {
		return api.PublishOpened{}, err
	}
	opened := api.PublishOpened{ID: one.id, Missing: []eboot.Digest{}, Unchanged: true}
	state := a.machine.State()
	for i, b := range one.bundles {
		known, ok := state.Bundle(b.Ref(), b.ERTS)
		switch {
		case !ok:
			opened.Unchanged = false
		case known.Manifest != b.Manifest:
			return api.PublishOpened{}, fmt.Errorf("bundle %s for ERTS %s exists with other content (%s, not %s); choose another version: %w",
				b.Ref(), b.ERTS, known.Manifest.Short(), b.Manifest.Short(), eboot.ErrConflict)
		case known.BootScript != b.BootScript || known.SysConfig != b.SysConfig:
			return api.PublishOpened{}, fmt.Errorf("bundle %s for ERTS %s exists with boot script %s, not %s; choose another version: %w",
				b.Ref(), b.ERTS, known.BootScript, b.BootScript, eboot.ErrConflict)
		default:
			one.bundles[i] = known // the first publish gave the times
		}
	}

	one.ingest = a.store.Ingest()
	if err := a.publishes.add(one); err != nil {
		return api.PublishOpened{}, errors.Join(err, one.ingest.Close())
	}
	one.ingest.Protect(func(yield func(eboot.Digest) bool) {
		for d := range one.sizes {
			if !yield(d) {
				return
			}
		}
	})
	for d := range one.sizes {
		if !a.store.Has(d) {
			opened.Missing = append(opened.Missing, d)
		}
	}
	if err := a.storeTree(one, r); err != nil {
		return api.PublishOpened{}, errors.Join(err, a.AbortPublish(one.id))
	}
	return opened, nil
}

// newPublish reads the request; nothing is stored yet.
func (a *Agent) newPublish(r api.PublishRequest) (*publish, error) {
	manifest, err := eboot.ParseManifest(r.Manifest)
	if err != nil {
		return nil, err
	}
	if _, err := eboot.ParseTimes(r.Times, len(manifest.Entries)); err != nil {
		return nil, err
	}
	if len(r.ERTS) == 0 {
		return nil, fmt.Errorf("publish %s@%s: no ERTS version given: %w", r.Name, r.Version, eboot.ErrInvalid)
	}
	for _, p := range []string{r.BootScript, r.SysConfig} {
		if e := manifest.Find(p); p != "" && (e == nil || e.Kind == eboot.KindDirectory) {
			return nil, fmt.Errorf("publish %s@%s: %q is not a file of the tree: %w", r.Name, r.Version, p, eboot.ErrInvalid)
		}
	}
	one := &publish{id: uuid.NewString(), sizes: map[eboot.Digest]int64{}}
	for _, e := range manifest.Entries {
		if e.Kind != eboot.KindFile {
			continue
		}
		if size, ok := one.sizes[e.Digest]; ok && size != e.Size {
			return nil, fmt.Errorf("publish %s@%s: %q: one digest with two sizes: %w", r.Name, r.Version, e.Path, eboot.ErrInvalid)
		}
		one.sizes[e.Digest] = e.Size
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
			return nil, err
		}
		one.bundles = append(one.bundles, b)
	}
	return one, nil
}

// storeTree keeps the manifest and the times as blobs: on disk with the first
// flush, like the others.
func (a *Agent) storeTree(one *publish, r api.PublishRequest) error {
	for _, data := range [][]byte{r.Manifest, r.Times} {
		d := eboot.DigestOf(data)
		one.sizes[d] = int64(len(data))
		one.ingest.Protect(func(yield func(eboot.Digest) bool) { yield(d) })
		if err := one.ingest.Put(context.Background(), d, int64(len(data)), bytes.NewReader(data)); err != nil {
			return err
		}
	}
	return nil
}

// PutBlob takes one blob in.
func (a *Agent) PutBlob(ctx context.Context, id string, d eboot.Digest, size int64, content io.Reader) error {
	one, err := a.publishes.find(id)
	if err != nil {
		return err
	}
	one.busy.RLock()
	defer one.busy.RUnlock()
	if want, ok := one.sizes[d]; !ok || want != size {
		return fmt.Errorf("blob %s of %d bytes: is not in the manifest: %w", d.Short(), size, eboot.ErrInvalid)
	}
	if err := one.endedLocked(); err != nil {
		return err
	}
	return one.ingest.Put(ctx, d, size, content)
}

// FlushBlobs makes what came in survive a crash.
func (a *Agent) FlushBlobs(_ context.Context, id string) error {
	one, err := a.publishes.find(id)
	if err != nil {
		return err
	}
	one.busy.Lock()
	defer one.busy.Unlock()
	if err := one.endedLocked(); err != nil {
		return err
	}
	return a.commitIngest(one)
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
	if servers := len(a.cluster.Status().Servers); c.MinCopies > max(servers, 1) {
		return api.PublishResult{}, fmt.Errorf("publish %s: %d copies asked for, the cluster has %d servers: %w", one.bundles[0].Ref(), c.MinCopies, servers, eboot.ErrInvalid)
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
	holders, laggards, err := a.spread(ctx, one.bundles, c.MinCopies)
	if err != nil {
		return api.PublishResult{}, err
	}
	for i := range one.bundles {
		one.bundles[i].Holders = holders
	}
	result, err := a.commitBundles(ctx, one.bundles, w, c.Channel)
	if err != nil {
		return api.PublishResult{}, err
	}
	result.Laggards = laggards
	one.result, one.sizes = &result, nil
	one.committed.Store(true)
	if err := one.closeLocked(); err != nil {
		a.logger.Warn("publish not cleaned up", "id", id, "error", err)
	}
	return result, nil
}

func (a *Agent) commitBundles(ctx context.Context, bundles []eboot.Bundle, w api.Write, channel string) (api.PublishResult, error) {
	result := api.PublishResult{}
	for _, b := range bundles {
		written, err := a.addBundle(ctx, w, b, channel)
		if err != nil {
			return api.PublishResult{}, err
		}
		result.Generation = written.Generation
		result.Changed = result.Changed || written.Changed
		w.ExpectGeneration = nil // met by the first entry; that one may have raised it
		stored, ok := a.machine.State().Bundle(b.Ref(), b.ERTS)
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
