package mirror

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"eboot"
)

// source is a peer in the eyes of one Pull. What can change is guarded by mirror.mu.
type source struct {
	id  string
	bit uint64 // in item.asked

	peer    Peer // as Options.Peers gave it latest
	here    bool // Options.Peers named it when it was last asked
	workers int

	strikes int       // failures since the last success
	left    error     // why it is not asked any more, until
	until   time.Time // this moment

	slow  bool    // asked only for what no other has
	rate  float64 // bytes/s while it was waited for; 0: not known
	sent  int     // blobs
	lacks int     // blobs that it was asked for and does not have
	wrong int     // blobs with other content
}

func (s *source) usable() bool { return s.here && s.left == nil }

// account says what became of the peer, for people.
func (s *source) account() string {
	text := fmt.Sprintf("%s sent %d, lacks %d", s.id, s.sent, s.lacks)
	if s.wrong > 0 {
		text += fmt.Sprintf(", sent %d with wrong content", s.wrong)
	}
	switch {
	case s.left != nil:
		text += ", was left: " + s.left.Error()
	case !s.here:
		text += ", went away"
	}
	return text
}

// mayAsk reports whether s can be asked for the items of a shelf. mu must be held.
func (p *pull) mayAsk(s *source, key shelf) bool {
	if key.asked&s.bit != 0 {
		return false
	}
	if !s.slow {
		return true
	}
	return !slices.ContainsFunc(p.sources, func(o *source) bool { return o.usable() && !o.slow && key.asked&o.bit == 0 })
}

// better reports whether another peer can be expected to send it much faster
// than rate bytes/s, which is what s does. One that was not tried can.
func (p *pull) better(s *source, it *item, rate float64) bool {
	p.mirror.mu.Lock()
	defer p.mirror.mu.Unlock()
	return !it.alone && slices.ContainsFunc(p.sources, func(o *source) bool {
		return o != s && o.usable() && it.asked&o.bit == 0 && (o.rate > slowFactor*rate || o.rate == 0 && !o.slow)
	})
}

// recruit asks who is there, and starts workers for whoever has none.
func (p *pull) recruit(ctx context.Context) {
	peers := p.mirror.opts.Peers()
	m := p.mirror
	m.mu.Lock()
	defer m.mu.Unlock()
	before := p.usable()
	for _, s := range p.sources {
		s.here = false
	}
	for _, peer := range peers {
		if p.from != "" && p.from != peer.ID {
			continue
		}
		s := p.source(peer.ID)
		if s == nil {
			continue
		}
		s.peer, s.here = peer, true
		if s.left != nil && time.Now().After(s.until) {
			s.left, s.strikes, s.wrong = nil, 0, 0
		}
		for s.usable() && s.workers < streamsPerPeer {
			s.workers++
			p.workers.Go(func() { p.work(ctx, s) })
		}
	}
	if p.usable() != before {
		m.wake() // a slow peer may be the only one left for something
	}
}

// usable returns the peers that can be asked, as a set. mu must be held.
func (p *pull) usable() (set uint64) {
	for _, s := range p.sources {
		if s.usable() {
			set |= s.bit
		}
	}
	return set
}

// source returns what is known of a peer, nil when there are too many. mu must be held.
func (p *pull) source(id string) *source {
	for _, s := range p.sources {
		if s.id == id {
			return s
		}
	}
	if len(p.sources) == maxPeers {
		return nil
	}
	s := &source{id: id, bit: 1 << len(p.sources)}
	p.sources = append(p.sources, s)
	return s
}

// work is a worker of s: it fetches what s can be asked for until ctx ends or s
// is left.
func (p *pull) work(ctx context.Context, s *source) {
	slots := p.mirror.slots
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		items, changed := p.take(s)
		if len(items) > 0 {
			err := p.fetch(ctx, s, items)
			<-slots
			if pause := p.judge(ctx, s, err); pause > 0 {
				select {
				case <-time.After(pause):
				case <-ctx.Done():
					return
				}
			}
			continue
		}
		<-slots
		if changed == nil {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// judge draws the conclusions from a request to s that ended with err, and
// returns how long its worker must pause.
func (p *pull) judge(ctx context.Context, s *source, err error) (pause time.Duration) {
	m := p.mirror
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.wake()
	if ctx.Err() != nil {
		return 0
	}
	switch {
	case err == nil:
		s.strikes = 0
	case errors.Is(err, errSlow):
		s.slow = true
		m.log.Info("peer is slow, others are asked first", "peer", s.id, "bytes_per_second", int64(s.rate))
	default:
		s.strikes++
		pause = strikePause * time.Duration(s.strikes)
	}
	if s.left == nil && (s.strikes >= maxStrikes || s.wrong >= maxStrikes || errors.Is(err, errStalled)) {
		if err == nil {
			err = fmt.Errorf("wrong content: %w", eboot.ErrInvalid)
		}
		s.left, s.until = err, time.Now().Add(leftFor)
		m.log.Warn("peer left for now", "peer", s.id, "error", err)
	}
	return pause
}

// advanced notes a step forward of s, by so many blobs: what fails later is a new
// failure.
func (p *pull) advanced(s *source, blobs int) {
	p.mirror.mu.Lock()
	s.strikes = 0
	s.sent += blobs
	p.mirror.mu.Unlock()
}

// lacking notes that s does not have it. The worker still has the item.
func (p *pull) lacking(s *source, it *item) {
	p.mirror.mu.Lock()
	it.asked |= s.bit
	s.lacks++
	p.mirror.mu.Unlock()
}

// refused notes that s sent something else than it. The worker still has the item.
func (p *pull) refused(s *source, it *item, err error) {
	p.mirror.mu.Lock()
	it.asked |= s.bit
	s.wrong++
	p.mirror.mu.Unlock()
	p.mirror.log.Warn("peer sent wrong content", "peer", s.id, "digest", it.digest, "error", err)
}
