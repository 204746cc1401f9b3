package agent

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"eboot"
	"eboot/bootproto"
	"eboot/fleet"
	"eboot/fsm"
)

// ageSlack is how far the clocks of two servers may be apart, as for pins.
const ageSlack = time.Minute

// learnAfter is how long after its end a boot still shows what boots need: init runs what
// -s and -eval say after the last instruction of the script.
const learnAfter = 5 * time.Second

var _ bootproto.Extended = (*bootSession)(nil)

// opened is what a connection knows since our loader opened a session on it.
type opened struct {
	plan    eboot.PlanKey
	planned map[string]bool // paths that are sent unasked
	booting bool            // files are asked for because of the boot
	until   time.Time       // when that is over; zero: the boot goes on
	learned bool            // something new that the other servers were not told of
}

// Open begins a session for the bundle that the slave names. It may be another than the
// channel's now: the one that this boot began with.
func (c *bootSession) Open(o bootproto.Open) (bootproto.Opened, error) {
	s := c.service
	state := s.view.State()
	if err := s.silenced(state); err != nil {
		return bootproto.Opened{}, fmt.Errorf("%w: %w", err, bootproto.ErrUnavailable)
	}
	digest, err := eboot.ParseDigest(o.Digest)
	if err != nil {
		return bootproto.Opened{}, fmt.Errorf("open a session: %w: %w", err, bootproto.ErrBadOpen)
	}
	entry, ok := state.Lookup(c.slave)
	if !ok {
		return bootproto.Opened{}, fmt.Errorf("address is not whitelisted: %w", bootproto.ErrDenied)
	}
	bundle, ok := namedBundle(state, o.Bundle, digest, c.erts)
	if !ok {
		return bootproto.Opened{}, fmt.Errorf("bundle %s (%s) does not exist for ERTS %s: %w", o.Bundle, digest.Short(), c.erts, bootproto.ErrUnavailable)
	}
	if !c.mayHave(state, entry, bundle, o.Age) {
		return bootproto.Opened{}, fmt.Errorf("bundle %s (%s): channel %s did not point to it when this boot began: %w", bundle.Ref(), digest.Short(), entry.Channel, bootproto.ErrDenied)
	}
	tree, err := s.tree(bundle)
	if err == nil && s.lacks(bundle) {
		err = fmt.Errorf("bundle %s is not complete on this server", bundle.Ref())
	}
	if err != nil {
		return bootproto.Opened{}, fmt.Errorf("%w: %w", err, bootproto.ErrUnavailable)
	}
	c.tree = tree
	c.begun(o, digest)
	c.seen.Requested("eboot_open", []byte(bundle.Ref().String()))
	control := state.ChannelOptions(entry.Channel).Control == eboot.ControlOn
	pin := c.seen.Opened(fleet.Opened{
		Boot: o.Boot, Manifest: digest, Bundle: bundle.Ref(), Channel: entry.Channel, Mode: o.Mode, Age: o.Age,
		Control: control && o.CanRestart, Rollout: rolloutOf(state, entry, c.slave, bundle),
	})
	if !pin.Manifest.IsZero() {
		s.exchange.tell(pin)
	}
	answer := bootproto.Opened{
		Bundle: bundle.Ref().String(), Cwd: c.WorkingDirectory(), Roots: tree.Roots(),
		Control: control,
	}
	if o.Tree {
		answer.Tree = tree.index()
	}
	if o.Plan {
		p := tree.plan(c.opened.plan, s.fleet.Plan(c.opened.plan))
		answer.Plan, answer.Frames = p.paths, tree.frames(p)
		c.opened.planned = p.planned
	}
	return answer, nil
}

// begun notes what this session is. A slave that is up opens again whenever it loads code
// after a while: only what wants a plan is a boot, and what comes after it on its
// connection.
func (c *bootSession) begun(o bootproto.Open, manifest eboot.Digest) {
	c.tellLearned()
	next := &opened{booting: o.Plan}
	if c.opened != nil && !o.Plan {
		next.booting, next.until = c.opened.booting, c.opened.until
	}
	next.plan = eboot.PlanKey{Manifest: manifest, Embedded: o.Mode == "embedded"}
	if script, _, ok := c.tree.Resolve([]byte(o.Script)); ok && isBootScript([]byte(script)) {
		next.plan.Script = script // else it is none of the bundle, and nothing is learned
	}
	c.opened = next
}

// namedBundle finds the bundle that a slave names: by its name when the digest agrees,
// since two bundles may share a tree, else by the digest.
func namedBundle(state *fsm.State, name string, digest eboot.Digest, erts string) (eboot.Bundle, bool) {
	if ref, err := eboot.ParseRef(name); err == nil {
		if b, ok := state.Bundle(ref, erts); ok && b.Manifest == digest {
			return b, true
		}
	}
	return state.BundleByManifest(digest, erts)
}

// mayHave reports whether the bundle is what this slave boots now, or what it got when this
// boot of it began: that is known here, or the history of its channel says so of the time
// that the slave names.
func (c *bootSession) mayHave(state *fsm.State, entry *eboot.WhitelistEntry, b eboot.Bundle, age time.Duration) bool {
	if c.tree != nil && c.opened == nil {
		if r, ok := c.service.trees.residence(b); ok && r.tree == c.tree {
			return true // this connection has sent its boot script
		}
	}
	if now, ok := state.Target(entry, c.slave, c.erts); ok && now.Manifest == b.Manifest {
		return true
	}
	// A slave that a rollout has come to may still run what the channel points to.
	if now, ok := state.ChannelBundle(entry.Channel, c.erts); ok && now.Manifest == b.Manifest {
		return true
	}
	if pin, ok := c.service.fleet.Pin(c.slave, c.erts); ok && pin.Manifest == b.Manifest {
		return true
	}
	began := c.service.now().Add(-age)
	return pointedTo(state, entry.Channel, b, began) || rolledOut(state, entry, c.slave, b, began) || c.hasBooted(entry.Channel, b)
}

// hasBooted reports whether some server remembers that this address booted b from the channel:
// of several slaves at one address only one has the pin.
func (c *bootSession) hasBooted(channel string, b eboot.Bundle) bool {
	return slices.ContainsFunc(c.service.fleet.BootsOf(c.slave), func(known eboot.Boot) bool {
		return known.Manifest == b.Manifest && known.ERTS == b.ERTS && known.Channel == channel
	})
}

// rolledOut reports whether the slave booted b at a time, give or take ageSlack, because of
// the latest rollout of its channel.
func rolledOut(state *fsm.State, entry *eboot.WhitelistEntry, slave netip.Addr, b eboot.Bundle, at time.Time) bool {
	r, ok := state.Rollout(entry.Channel)
	if !ok || at.Before(r.StartedAt.Add(-ageSlack)) || r.Phase.Over() && at.After(r.ChangedAt.Add(ageSlack)) {
		return false
	}
	target, ok := state.RolloutBundle(&r, b.ERTS)
	if !ok || target.Manifest != b.Manifest {
		return false
	}
	stage, ok := r.StageOf(slave, entry.Labels)
	return ok && stage <= r.Stage
}

// pointedTo reports whether the channel pointed to b's tree at a time, give or take
// ageSlack, and points elsewhere now.
func pointedTo(state *fsm.State, channel string, b eboot.Bundle, at time.Time) bool {
	ch, ok := state.Channel(channel)
	if !ok {
		return false
	}
	var since time.Time // when the channel came to what the next move takes it from
	for _, move := range ch.History {
		if move.ERTS != b.ERTS {
			continue
		}
		from, ok := state.Bundle(move.From, b.ERTS)
		if ok && from.Manifest == b.Manifest && !at.Before(since.Add(-ageSlack)) && at.Before(move.At.Add(ageSlack)) {
			return true
		}
		since = move.At
	}
	return false
}

// Fetch answers one path of an eboot_fetch, or of the plan.
func (c *bootSession) Fetch(name []byte, pack bool) (bootproto.Content, error) {
	if c.opened == nil {
		return bootproto.Content{}, fmt.Errorf("fetch without a session: %w", eboot.ErrInvalid)
	}
	content, err := wireContent(c.tree.Get(name))
	if err != nil {
		return content, err
	}
	if !c.opened.planned[string(name)] {
		c.seen.Requested("eboot_fetch", name)
		c.learn(name, content.Size)
	}
	if pack && content.Reader == nil {
		if packed, ok := c.tree.pack(name, content.Data); ok {
			return bootproto.Content{Data: packed, Size: int64(len(packed)), Packed: true}, nil
		}
	}
	return content, nil
}

// learn notes that boots like this one need a file. The loader looks for what was sent ahead
// by the clean path that it asks for, symlinks and all.
func (c *bootSession) learn(name []byte, size int64) {
	o := c.opened
	if !o.booting || !o.until.IsZero() && c.service.now().After(o.until) {
		return
	}
	if path, ok := c.tree.Relative(name); ok && c.service.fleet.Learn(o.plan, path, size) {
		o.learned = true
	}
}

// tellLearned has the other servers told of what is new since the last time.
func (c *bootSession) tellLearned() {
	if c.opened != nil && c.opened.learned {
		c.opened.learned = false
		c.service.exchange.learned(c.opened.plan)
	}
}

// Report takes in how far the boot has come.
func (c *bootSession) Report(r bootproto.Report) {
	if c.opened == nil {
		return
	}
	c.seen.Requested("eboot_report", nil)
	report := fleet.Report{Switches: r.Switches, Local: r.Local, Phases: make([]eboot.BootMark, len(r.Phases))}
	for i, p := range r.Phases {
		report.Phases[i] = eboot.BootMark{Phase: p.Name, AtMS: p.At.Milliseconds()}
		if p.Name == string(eboot.BootStarted) && c.opened.until.IsZero() {
			c.opened.until = c.service.now().Add(learnAfter)
			c.tellLearned()
		}
	}
	c.seen.Reported(report)
}

// script answers a boot script: with our loader in it, unless the channel wants none. A
// loader of ours reads it as it was published, like any other file.
func (c *bootSession) script(options eboot.ChannelOptions, bundle eboot.Bundle, tree *servedTree, name []byte) (bootproto.Content, error) {
	content, err := tree.Get(name)
	path, size, isFile := tree.Resolve(name)
	stock := options.Loader == eboot.LoaderStock || options.Live == eboot.LiveOn
	if err != nil || !isFile || stock || size > maxScript {
		return wireContent(content, err)
	}
	published, err := readScript(content)
	if err != nil {
		return bootproto.Content{}, err
	}
	data := tree.script(bundle, path, published).content
	return bootproto.Content{Data: data, Size: int64(len(data))}, nil
}

func isBootScript(name []byte) bool { return bytes.HasSuffix(name, []byte(".boot")) }
