package mirror

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"eboot"
	"eboot/filestore"
)

// pull is one Pull at work.
type pull struct {
	mirror  *Mirror
	report  func(Progress)
	from    string            // the only peer that is asked; empty: all are
	ingest  *filestore.Ingest // of what comes
	workers sync.WaitGroup
	bytes   atomic.Int64 // fetched; see Progress

	// Guarded by mirror.mu.
	pending map[shelf][]*item
	blocked []*item   // another Pull is fetching these
	flying  int       // items that workers have
	open    int       // items not fetched yet: pending, blocked and flying
	fetched []*item   // put, not committed
	since   time.Time // when the first of fetched was put
	sources []*source // by bit
	total   Progress  // without what is counted elsewhere
	failure error     // of our own disk
}

// item is a blob that the store lacks.
type item struct {
	digest  eboot.Digest
	size    int64    // -1: not known
	asked   uint64   // peers that do not have it, or sent something else
	partial *partial // what there is of a big blob
	alone   bool     // pieces from several peers did not fit together: take all from one
}

// shelf is where items wait that the same peers can be asked for.
type shelf struct {
	asked uint64
	big   bool
}

// shelve puts an item where workers find it. mu must be held.
func (p *pull) shelve(it *item) {
	key := shelf{asked: it.asked, big: it.size > bigBlob}
	p.pending[key] = append(p.pending[key], it)
}

// run fetches everything. It returns when all of its goroutines have ended.
func (p *pull) run(ctx context.Context) (err error) {
	if p.open == 0 {
		p.report(p.progress())
		return nil
	}
	p.ingest = p.mirror.opts.Store.Ingest()
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		p.workers.Wait()
		p.abandon()
		err = errors.Join(err, p.ingest.Close())
		p.report(p.progress())
	}()
	ticks := time.NewTicker(turn)
	defer ticks.Stop()
	p.recruit(ctx)
	for fresh := true; ; {
		switch state, changed := p.assess(); state {
		case failed:
			return p.failure
		case due:
			if err := p.commit(); err != nil {
				return err
			}
		case complete:
			return nil
		case stuck:
			if !fresh { // perhaps somebody came meanwhile
				p.recruit(ctx)
				fresh = true
				continue
			}
			return p.missing()
		case working:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			case <-ticks.C:
				p.recruit(ctx)
				p.report(p.progress())
			}
			fresh = false
		}
	}
}

// state is what a Pull has come to.
type state int

const (
	working  state = iota // wait
	due                   // commit, then look again
	complete              // everything is committed
	stuck                 // nobody can be asked for what is left
	failed                // our own disk fails
)

// assess looks how things stand. changed is closed when it is worth looking again.
func (p *pull) assess() (_ state, changed <-chan struct{}) {
	m := p.mirror
	m.mu.Lock()
	defer m.mu.Unlock()
	blocked, freed := p.blocked, false
	p.blocked = nil
	for _, it := range blocked {
		if p.admit(it) {
			p.shelve(it)
			freed = true
		}
	}
	if freed {
		m.wake() // our workers may have looked just before
	}
	idle := p.flying == 0 && !p.anyEligible()
	switch {
	case p.failure != nil:
		return failed, nil
	case len(p.fetched) > 0 && (idle || time.Since(p.since) >= commitEvery):
		return due, nil
	case p.open == 0 && len(p.fetched) == 0:
		return complete, nil
	case idle && len(p.blocked) == 0:
		return stuck, nil
	}
	return working, m.changed
}

// anyEligible reports whether some worker could take something. mu must be held.
func (p *pull) anyEligible() bool {
	for key := range p.pending {
		for _, s := range p.sources {
			if s.usable() && p.mayAsk(s, key) {
				return true
			}
		}
	}
	return false
}

// admit reports whether it must be fetched by this Pull. When another one has
// fetched it, it is done; when another one is about to, it waits in blocked. mu
// must be held.
func (p *pull) admit(it *item) bool {
	if owner := p.mirror.claims[it.digest]; owner != nil && owner != p {
		p.blocked = append(p.blocked, it)
		return false
	}
	if it.partial == nil && p.mirror.opts.Store.Has(it.digest) {
		p.open--
		p.total.FetchedBlobs++
		p.bytes.Add(max(0, it.size))
		return false
	}
	return true
}

// take gives a worker of s something to fetch: one big blob or a batch of small
// ones. With nothing to do, changed is closed when it is worth asking again. Both
// are nil when s is of no more use; the worker must end then.
func (p *pull) take(s *source) (items []*item, changed <-chan struct{}) {
	m := p.mirror
	m.mu.Lock()
	defer m.mu.Unlock()
	if !s.usable() || p.failure != nil {
		s.workers--
		return nil, nil
	}
	before := p.open
	for _, big := range []bool{true, false} {
		for key := range p.pending {
			if key.big == big && len(items) == 0 && p.mayAsk(s, key) {
				items = p.unshelve(key)
			}
		}
	}
	for _, it := range items {
		m.claims[it.digest] = p
	}
	p.flying += len(items)
	if p.open != before {
		m.wake() // that may have been all
	}
	return items, m.changed
}

// unshelve takes as much as one request may ask for. mu must be held.
func (p *pull) unshelve(key shelf) (items []*item) {
	list := p.pending[key]
	for bytes := int64(0); len(list) > 0 && bytes < batchBytes && len(items) < batchBlobs; {
		it := list[len(list)-1]
		list = list[:len(list)-1]
		if !p.admit(it) {
			continue
		}
		items = append(items, it)
		if key.big {
			break
		}
		if it.size < 0 {
			bytes += unknownSize
		}
		bytes += max(0, it.size)
	}
	if p.pending[key] = list; len(list) == 0 {
		delete(p.pending, key)
	}
	return items
}

// giveBack returns what a worker did not fetch. mu must be held.
func (p *pull) giveBack(items []*item) {
	for _, it := range items {
		p.flying--
		if it.partial == nil { // else it stays ours: the others must not fetch it as well
			delete(p.mirror.claims, it.digest)
		}
		p.shelve(it)
	}
}

// got notes that it was put, with size bytes.
func (p *pull) got(it *item, size int64) {
	m := p.mirror
	m.mu.Lock()
	defer m.mu.Unlock()
	if it.size < 0 {
		p.total.Bytes += size
	}
	if len(p.fetched) == 0 {
		p.since = time.Now()
	}
	p.fetched = append(p.fetched, it)
	p.flying--
	p.open--
	p.total.FetchedBlobs++
}

// fail ends the Pull: our own side is broken.
func (p *pull) fail(err error) {
	m := p.mirror
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.failure == nil {
		p.failure = err
	}
	m.wake()
}

// commit makes what was fetched durable.
func (p *pull) commit() error {
	m := p.mirror
	m.mu.Lock()
	batch := p.fetched
	p.fetched = nil
	m.mu.Unlock()
	err := p.ingest.Commit()
	m.mu.Lock()
	for _, it := range batch {
		delete(m.claims, it.digest)
	}
	m.wake()
	m.mu.Unlock()
	return err
}

// abandon lets the other Pulls have what this one will not fetch any more.
func (p *pull) abandon() {
	m := p.mirror
	m.mu.Lock()
	for d, owner := range m.claims {
		if owner == p {
			delete(m.claims, d)
		}
	}
	m.wake()
	m.mu.Unlock()
}

func (p *pull) progress() Progress {
	m := p.mirror
	m.mu.Lock()
	defer m.mu.Unlock()
	now := p.total
	now.FetchedBytes = p.bytes.Load()
	now.Peers = bits.OnesCount64(p.usable())
	return now
}

// missing is the error for what nobody has.
func (p *pull) missing() error {
	m := p.mirror
	m.mu.Lock()
	defer m.mu.Unlock()
	var example eboot.Digest
	for _, list := range p.pending {
		example = list[0].digest
	}
	var why []string
	for i, s := range p.sources {
		if i == 8 {
			why = append(why, fmt.Sprintf("and %d more", len(p.sources)-i))
			break
		}
		why = append(why, s.account())
	}
	if len(why) == 0 {
		why = []string{"no other server is known to be alive"}
	}
	return fmt.Errorf("%d of %d are not to be had, among them %s (%s): %w", p.open, p.total.Blobs, example.Short(), strings.Join(why, "; "), eboot.ErrUnavailable)
}
