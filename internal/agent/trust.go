package agent

import (
	"context"
	"fmt"
	"iter"
	"os"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/api"
	"eboot/config"
	"eboot/fsm"
	"eboot/signature"
)

// trust is whose signatures this server wants, and what it found of the bundles that it was
// asked about: discovery asks for each search. Every place that slaves get bytes of a bundle from
// asks it (bootService.tree), whatever the replicated state says.
type trust struct {
	signature.Trust
	logger hclog.Logger

	mu     sync.RWMutex
	judged map[judgedBundle]judgement
}

// judgedBundle is what of a bundle is signed.
type judgedBundle struct {
	ref  eboot.Ref
	erts string
	tree bundleKey
}

// judgement is what was found of a bundle while it had these signatures.
type judgement struct {
	signatures []eboot.Signature
	err        error
}

// maxJudged bounds what is remembered; beyond, all is found anew.
const maxJudged = 1024

// openTrust reads the keys that are trusted. eboot.ErrInvalid: a file is no public key.
func openTrust(c config.Trust, logger hclog.Logger) (*trust, error) {
	var keys []signature.PublicKey
	for _, path := range c.Keys {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("trust.keys: %w", err)
		}
		k, err := signature.ParsePublicKey(text)
		if err != nil {
			return nil, fmt.Errorf("trust.keys: %s: %w", path, err)
		}
		keys = append(keys, k)
	}
	t := &trust{logger: logger, judged: map[judgedBundle]judgement{}}
	var err error
	if t.Trust, err = signature.NewTrust(keys, c.Threshold); err != nil {
		return nil, fmt.Errorf("trust.keys: %w", err)
	}
	return t, nil
}

// serves returns nil when slaves may have b from this server, or eboot.ErrUnavailable.
func (t *trust) serves(b eboot.Bundle) error {
	if !t.Demands() {
		return nil
	}
	key := judgedBundle{ref: b.Ref(), erts: b.ERTS, tree: keyOf(b)}
	t.mu.RLock()
	known, ok := t.judged[key]
	t.mu.RUnlock()
	if ok && slices.EqualFunc(known.signatures, b.Signatures, eboot.Signature.Equal) {
		return known.err
	}
	now := judgement{signatures: b.Signatures}
	if _, err := t.Check(b); err != nil {
		now.err = fmt.Errorf("%v: %w", err, eboot.ErrUnavailable)
		t.logger.Error("bundle is not served from here, its signatures are too few", "error", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.judged) >= maxJudged {
		clear(t.judged)
	}
	t.judged[key] = now
	return now.err
}

// permits refuses, with eboot.ErrDenied, what would have slaves boot a bundle that is not
// signed as it should be, and signatures that would not count here: one of those could take the
// place of a good one. How a rollout ends is not asked: to stop one must always be possible, and
// what is not signed is not served.
func (t *trust) permits(state *fsm.State, command fsm.Command) error {
	switch c := command.(type) {
	case fsm.AddBundle:
		return t.permitsAdding(state, c.Bundle)
	case fsm.SignBundle:
		b, ok := state.Bundle(c.Ref, c.ERTS)
		if !ok || b.Manifest != c.Manifest {
			return nil // the state machine says so better
		}
		return t.permitsSignatures(b, c.Signatures)
	case fsm.SetChannel:
		return t.permitsBooting(state, c.Ref, c.ERTS)
	case fsm.ConfigureChannel:
		return t.permitsBooting(state, c.Ref, c.ERTS)
	case fsm.StartRollout:
		return t.permitsBooting(state, c.Ref, "")
	case fsm.UndoChannel:
		for move := range latestMoves(state, c.Channel) {
			if err := t.permitsBooting(state, move.From, move.ERTS); err != nil {
				return err
			}
		}
	}
	return nil
}

// permitsAdding asks of a bundle that is published with the signatures that it has already, if it
// was published before.
func (t *trust) permitsAdding(state *fsm.State, b eboot.Bundle) error {
	if err := t.permitsSignatures(b, b.Signatures); err != nil {
		return err
	}
	if known, ok := state.Bundle(b.Ref(), b.ERTS); ok {
		b.Signatures = slices.Clip(b.Signatures)
		for _, s := range known.Signatures {
			if !slices.ContainsFunc(b.Signatures, func(o eboot.Signature) bool { return o.KeyID == s.KeyID }) {
				b.Signatures = append(b.Signatures, s)
			}
		}
	}
	_, err := t.Check(b)
	return err
}

func (t *trust) permitsSignatures(b eboot.Bundle, signatures []eboot.Signature) error {
	for _, s := range signatures {
		if err := t.CheckSignature(b, s); err != nil {
			return err
		}
	}
	return nil
}

func (t *trust) permitsBooting(state *fsm.State, ref eboot.Ref, erts string) error {
	for _, b := range state.BundlesOf(ref) {
		if erts != "" && b.ERTS != erts {
			continue
		}
		if _, err := t.Check(b); err != nil {
			return err
		}
	}
	return nil
}

// latestMoves yields what the latest change of a channel moved.
func latestMoves(state *fsm.State, channel string) iter.Seq[eboot.ChannelMove] {
	return func(yield func(eboot.ChannelMove) bool) {
		c, _ := state.Channel(channel)
		for _, move := range c.History {
			if move.Generation == c.History[len(c.History)-1].Generation && !yield(move) {
				return
			}
		}
	}
}

// checkTrust is asked at the door: by the server that an operator talks to, and again by the
// one that leads, which may be the only one that trusts keys. eboot.ErrDenied: see trust.permits.
func (a *Agent) checkTrust(ctx context.Context, command fsm.Command) error {
	if !a.trust.Demands() {
		return nil
	}
	err := a.trust.permits(a.machine.State(), command)
	if err == nil || a.Fresh(ctx) != nil {
		return err
	}
	return a.trust.permits(a.machine.State(), command) // another server may have taken the signature in
}

// SignBundle adds signatures to a bundle.
func (a *Agent) SignBundle(ctx context.Context, w api.Write, ref eboot.Ref, s api.BundleSignatures) (api.WriteResult, error) {
	return a.write(ctx, w, func(h fsm.Header) fsm.Command {
		return fsm.SignBundle{Header: h, Ref: ref, ERTS: s.ERTS, Manifest: s.Manifest, Signatures: s.Signatures}
	})
}

// Manifest returns the manifest of a bundle as it is on this disk.
func (a *Agent) Manifest(_ context.Context, ref eboot.Ref, erts string) ([]byte, error) {
	b, err := oneBundle(a.view.State().BundlesOf(ref), ref, erts)
	if err != nil {
		return nil, err
	}
	data, err := a.store.Read(b.Manifest)
	if err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", ref, err)
	}
	return data, nil
}

// signPublish gives the bundles of a publish the signatures that came with its commit, and
// asks whether they are enough, before anything is copied to other servers.
func (a *Agent) signPublish(ctx context.Context, bundles []eboot.Bundle, signatures map[string][]eboot.Signature) error {
	for erts := range signatures {
		if !slices.ContainsFunc(bundles, func(b eboot.Bundle) bool { return b.ERTS == erts }) {
			return fmt.Errorf("publish %s: signatures for ERTS %q, for which nothing is published: %w", bundles[0].Ref(), erts, eboot.ErrInvalid)
		}
	}
	for i := range bundles {
		bundles[i].Signatures = signatures[bundles[i].ERTS]
		if err := bundles[i].Check(); err != nil {
			return err
		}
		add := fsm.AddBundle{Bundle: bundles[i]}
		if err := a.checkTrust(ctx, add); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		if err := a.awaitVersion(ctx, fsm.MinimumVersion(add)); err != nil {
			return err
		}
		if err := a.checkVersion("publish with signatures", fsm.MinimumVersion(add)); err != nil {
			return err
		}
	}
	return nil
}
