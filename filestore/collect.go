package filestore

import (
	"context"
	"fmt"
	"os"
	"sync"

	"eboot"
)

// protection is what must not be collected, apart from what is live.
type protection struct {
	turn chan struct{} // holds one element while a Collect runs

	mu      sync.Mutex
	ingests map[*Ingest]struct{} // open ones
	// collecting is set while a Collect runs. An Ingest that is closed meanwhile
	// leaves its digests in lingering: its bundle may have become live after
	// Collect asked what is live.
	collecting bool
	lingering  []map[eboot.Digest]struct{}
}

func newProtection() protection {
	return protection{turn: make(chan struct{}, 1), ingests: make(map[*Ingest]struct{})}
}

// begin waits until no other Collect runs.
func (p *protection) begin(ctx context.Context) error {
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	p.mu.Lock()
	p.collecting = true
	p.mu.Unlock()
	return nil
}

func (p *protection) end() {
	p.mu.Lock()
	p.collecting, p.lingering = false, nil
	p.mu.Unlock()
	<-p.turn
}

// open makes i one of the ingests that protect.
func (p *protection) open(i *Ingest) {
	p.mu.Lock()
	p.ingests[i] = struct{}{}
	p.mu.Unlock()
}

// add protects digests on behalf of i.
func (p *protection) add(i *Ingest, digests ...eboot.Digest) {
	p.mu.Lock()
	for _, d := range digests {
		i.protected[d] = struct{}{}
	}
	p.mu.Unlock()
}

// close lifts the protection of i, unless a Collect runs: then it ends with that.
func (p *protection) close(i *Ingest) {
	p.mu.Lock()
	if _, open := p.ingests[i]; open {
		delete(p.ingests, i)
		if p.collecting {
			p.lingering = append(p.lingering, i.protected)
		}
		i.protected = make(map[eboot.Digest]struct{})
	}
	p.mu.Unlock()
}

// covers must be called with mu held.
func (p *protection) covers(d eboot.Digest) bool {
	for i := range p.ingests {
		if _, ok := i.protected[d]; ok {
			return true
		}
	}
	for _, set := range p.lingering {
		if _, ok := set[d]; ok {
			return true
		}
	}
	return false
}

// CollectResult says what Collect did.
type CollectResult struct {
	Removed      int   // blobs removed
	RemovedBytes int64 // their sizes
	Kept         int   // blobs that are live
	Protected    int   // blobs that only an Ingest named
}

// Collect removes the blobs that live does not yield and no Ingest names. It may
// run beside anything: what an Ingest names while Collect runs is safe, and a
// Has asked after Protect is true for good or false for good. live is called once,
// before anything is removed; it must yield every blob that is named at that
// moment. A Collect that meets another one waits for it. The error is that of ctx, or
// of the first file that could not be removed.
func (s *Store) Collect(ctx context.Context, live func(yield func(eboot.Digest) bool)) (CollectResult, error) {
	p := &s.protection
	if err := p.begin(ctx); err != nil {
		return CollectResult{}, err
	}
	defer p.end()

	named := make(map[eboot.Digest]struct{})
	for d := range live {
		named[d] = struct{}{}
	}
	if err := ctx.Err(); err != nil {
		return CollectResult{}, err // live may have given up: named is not all
	}
	var result CollectResult
	var candidates []eboot.Digest
	s.mu.Lock()
	for d := range s.sizes {
		if _, ok := named[d]; ok {
			result.Kept++
		} else {
			candidates = append(candidates, d)
		}
	}
	for d := range s.damaged { // nobody needs these any more
		if _, ok := named[d]; !ok {
			delete(s.damaged, d)
		}
	}
	s.mu.Unlock()
	for _, d := range candidates {
		if err := ctx.Err(); err != nil {
			return result, err
		}
		if err := s.collect(d, &result); err != nil {
			return result, fmt.Errorf("collect blob %s: %w", d, err)
		}
	}
	return result, nil
}

// collect removes one blob unless it is protected. It leaves the index under the
// lock that protects, so that whoever protects it later is told that it is gone;
// its file loses its name under the lock that commits, so that it cannot be the file
// of a later Put. The slow part, giving the space back, needs no lock.
func (s *Store) collect(d eboot.Digest, result *CollectResult) error {
	s.files.Lock()
	size, ok := s.size(d)
	s.protection.mu.Lock()
	protected := s.protection.covers(d)
	if ok && !protected {
		s.forget(d, nil)
	}
	s.protection.mu.Unlock()
	if !ok || protected {
		s.files.Unlock()
		if ok {
			result.Protected++
		}
		return nil
	}
	trash := s.tmpPath(d)
	err := os.Rename(s.path(d), trash)
	s.files.Unlock()
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	result.Removed++
	result.RemovedBytes += size
	return os.Remove(trash)
}
