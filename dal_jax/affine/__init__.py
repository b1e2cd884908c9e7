"""Affine pieces of JAX functions of one scalar, independent of images and statistics."""

from dal_jax.affine._piece import AffinePiece as AffinePiece
from dal_jax.affine._piece import PieceStatus as PieceStatus
from dal_jax.affine._piece import affine_piece as affine_piece
from dal_jax.affine._sweep import Sweep as Sweep
from dal_jax.affine._sweep import Swept as Swept
from dal_jax.affine._sweep import sweep as sweep
