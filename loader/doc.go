// Package loader holds the loader that eboot's boot scripts bring along, and what
// is done with boot scripts to bring it.
//
// A boot script (.boot) is the external form of {script,{Name,Vsn},Instructions},
// which init of the slave evaluates one after the other. Rewrite splices
// instructions of ours into it and copies all others byte for byte, whatever terms
// they hold: the loader's code comes first and takes the place of erl_prim_loader,
// each progress is reported to it, and boot variables are replaced by the
// directories of the bundle that they stand for. Build has the loader's code, made by
// scripts/loader-beams from eboot_loader.erl. EncodeTree writes what the loader wants
// to know of the bundle's files, in the form that docs/PROTOCOL.md calls the tree.
//
// The package reads scripts, not bundles: what there is in a bundle it learns
// through Tree.
package loader
