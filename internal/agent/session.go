package agent

import (
	"bytes"
	"fmt"
	"time"

	"eboot"
	"eboot/bootproto"
	"eboot/fleet"
	"eboot/fsm"
)

// ageSlack is what may pass between the moment when a channel is asked for a bundle
// and the one when the slave's loader begins to count.
const ageSlack = 5 * time.Second

// learnAfter is how long after its end a boot still shows what boots need: init runs what
// -s and -eval say after the last instruction of the script.
const learnAfter = 5 * time.Second

var _ bootproto.Extended = (*bootSession)(nil)

// opened is what a connection knows since our loader opened a session on it.
type opened struct {
	plan    eboot.PlanKey
	planned map[string]bool // paths that are sent unasked
	learned bool            // something new that the other servers were not told of
	until   time.Time       // when boots like this one are learned from no more; zero: it goes on
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
	if !c.mayHave(state, entry.Channel, bundle, o.Age) {
		return bootproto.Opened{}, fmt.Errorf("bundle %s (%s): channel %s did not point to it when this boot began: %w", bundle.Ref(), digest.Short(), entry.Channel, bootproto.ErrDenied)
	}
	tree, err := s.trees.tree(bundle)
	if err == nil && s.lacks(bundle) {
		err = fmt.Errorf("bundle %s is not complete on this server", bundle.Ref())
	}
	if err != nil {
		return bootproto.Opened{}, fmt.Errorf("%w: %w", err, bootproto.ErrUnavailable)
	}
	c.tree = tree
	embedded := o.Mode == "embedded"
	c.tellLearned()
	c.opened = &opened{plan: eboot.PlanKey{Manifest: digest, Script: o.Script, Embedded: embedded}}
	if kind, ok := tree.Entry(o.Script); !ok || kind != eboot.KindFile || !isBootScript([]byte(o.Script)) {
		c.opened.plan.Script = "" // of no boot script there is: nothing is learned
	}
	pin := c.seen.Opened(fleet.Opened{
		Boot: o.Boot, Manifest: digest, Bundle: bundle.Ref(), Channel: entry.Channel, Mode: o.Mode, Age: o.Age,
	})
	if !pin.Manifest.IsZero() {
		s.pins.tell(pin)
	}
	answer := bootproto.Opened{
		Bundle: bundle.Ref().String(), Cwd: c.WorkingDirectory(), Roots: tree.Roots(),
		Control: state.ChannelOptions(entry.Channel).Control == eboot.ControlOn,
	}
	if o.Tree {
		answer.Tree = tree.index()
	}
	if o.Plan {
		answer.Plan = tree.plan(c.opened.plan.Script, embedded, s.fleet.Plan(c.opened.plan))
		c.opened.planned = make(map[string]bool, len(answer.Plan))
		for _, path := range answer.Plan {
			c.opened.planned[path] = true
		}
	}
	return answer, nil
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

// mayHave reports whether the channel points to the bundle, or pointed to it when this
// boot of the slave began: that is known here, or the channel's history says so of the time
// that the slave names.
func (c *bootSession) mayHave(state *fsm.State, channel string, b eboot.Bundle, age time.Duration) bool {
	if c.tree != nil && c.opened == nil {
		if began, err := c.service.trees.tree(b); err == nil && began == c.tree {
			return true // this connection has sent its boot script
		}
	}
	if now, ok := state.ChannelBundle(channel, c.erts); ok && now.Manifest == b.Manifest {
		return true
	}
	if pin, ok := c.service.fleet.Pin(c.slave, c.erts); ok && pin.Manifest == b.Manifest {
		return true
	}
	return pointedTo(state, channel, b, c.service.now().Add(-age))
}

// pointedTo reports whether the channel pointed to b's tree at a time, or ageSlack before.
func pointedTo(state *fsm.State, channel string, b eboot.Bundle, at time.Time) bool {
	ch, ok := state.Channel(channel)
	if !ok {
		return false
	}
	since := at.Add(-ageSlack)
	same := func(ref eboot.Ref) bool {
		known, ok := state.Bundle(ref, b.ERTS)
		return ok && known.Manifest == b.Manifest
	}
	for _, move := range ch.History {
		if move.ERTS != b.ERTS {
			continue
		}
		// From ends here; it was in force at that time when this move came later.
		if same(move.From) && move.At.After(since) {
			return true
		}
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
	path := string(name)
	if !c.opened.planned[path] {
		c.learn(path, content.Size)
	}
	if pack && content.Reader == nil {
		if packed, ok := c.tree.pack(path, content.Data); ok {
			return bootproto.Content{Data: packed, Size: int64(len(packed)), Packed: true}, nil
		}
	}
	return content, nil
}

// learn notes that boots like this one need a file.
func (c *bootSession) learn(path string, size int64) {
	if until := c.opened.until; until.IsZero() || c.service.now().Before(until) {
		if c.service.fleet.Learn(c.opened.plan, path, size) {
			c.opened.learned = true
		}
	}
}

// tellLearned has the other servers told of what is new since the last time.
func (c *bootSession) tellLearned() {
	if c.opened != nil && c.opened.learned {
		c.opened.learned = false
		c.service.pins.learned(c.opened.plan)
	}
}

// Report takes in how far the boot has come.
func (c *bootSession) Report(r bootproto.Report) {
	if c.opened == nil {
		return
	}
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
func (c *bootSession) script(entry *eboot.WhitelistEntry, bundle eboot.Bundle, tree *servedTree, name []byte) (bootproto.Content, error) {
	content, err := tree.Get(name)
	path, covered := tree.Relative(name)
	stock := c.service.view.State().ChannelOptions(entry.Channel).Loader == eboot.LoaderStock
	if err != nil || !covered || stock || content.Size > maxScript {
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
