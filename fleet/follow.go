package fleet

import (
	"context"

	"eboot"
)

// followBuffer is how many changes a follower may be behind before it loses some.
const followBuffer = 256

// follower is one Follow. Guarded by Fleet.mu.
type follower struct {
	boots  chan eboot.Boot
	lost   int64 // changes not delivered since the latest that was
	latest *boot // the boot of the latest that was lost
}

// Follow delivers every boot, of whichever server, as it begins, whenever its phase changes,
// and when its slave reports how far it came. The channel is closed when ctx ends or Run does, and at once when too many follow.
// A reader that falls behind loses changes; what it gets next then says in Lost
// how many. When nothing else comes, the latest lost one is delivered again as it
// is by then, so that the end of a burst is never missing.
func (f *Fleet) Follow(ctx context.Context) <-chan eboot.Boot {
	w := &follower{boots: make(chan eboot.Boot, followBuffer)}
	f.mu.Lock()
	if f.stopped || len(f.followers) >= f.options.Followers {
		f.mu.Unlock()
		close(w.boots)
		return w.boots
	}
	f.followers[w] = struct{}{}
	f.mu.Unlock()
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.end(w)
	})
	return w.boots
}

func (f *Fleet) end(w *follower) {
	if _, open := f.followers[w]; open {
		delete(f.followers, w)
		close(w.boots)
	}
}

func (f *Fleet) endFollowers() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = true
	for w := range f.followers {
		f.end(w)
	}
	for r := range f.readers {
		f.endReader(r)
	}
}

// show delivers b as it is now to all followers.
func (f *Fleet) show(b *boot) {
	if len(f.followers) == 0 {
		return
	}
	change := b.snapshot()
	for w := range f.followers {
		change.Lost = w.lost
		select {
		case w.boots <- change:
			w.lost, w.latest = 0, nil
		default:
			w.lost++
			w.latest = b
			f.wakeRun()
		}
	}
}

func (f *Fleet) anyLost() bool {
	for w := range f.followers {
		if w.lost > 0 {
			return true
		}
	}
	return false
}

// tellLost delivers the latest lost change to followers that have room again.
func (f *Fleet) tellLost() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.followers {
		if w.lost == 0 {
			continue
		}
		change := w.latest.snapshot()
		change.Lost = w.lost - 1
		select {
		case w.boots <- change:
			w.lost, w.latest = 0, nil
		default:
		}
	}
}
