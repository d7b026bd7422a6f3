# %% [markdown]
# # MovieLens, from ratings to recommendations
#
# To be written.

# %%
print("to be written")
